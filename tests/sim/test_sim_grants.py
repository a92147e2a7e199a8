"""Grants and logins as pure state, with the time handed in."""

from __future__ import annotations

import pytest

from grok_oauth_proxy.sim.flows import AuthorizationCode, CodeFlow, DeviceFlow, s256
from grok_oauth_proxy.sim.grants import DeniedError, Ledger, Pair, Principal

ISSUER = "https://auth.example"


def login(ledger: Ledger, now: float = 1000.0, lifetime: float = 100.0) -> Pair:
    return ledger.login("client", now, lifetime)


def refresh(ledger: Ledger, token: str | None, now: float = 1001.0, grace: float = 0.0) -> Pair:
    return ledger.refresh(token or "", "client", now, 100.0, grace=grace)


@pytest.mark.parametrize(("now", "good"), [(999.9, False), (1000.0, True), (1099.9, True), (1100.0, False)])
def test_access_lives_from_issue_to_expiry(now: float, good: bool) -> None:
    """An access token is accepted from its issue on and no longer at its expiry."""
    ledger = Ledger(ISSUER)
    assert ledger.accepts(login(ledger).access_token, now) is good


@pytest.mark.parametrize(("now", "good"), [(1000.2, False), (1002.0, True)])
def test_edge_learns_late(now: float, good: bool) -> None:
    """A token younger than the edge lag is refused and accepted afterwards."""
    ledger = Ledger(ISSUER)
    assert ledger.accepts(login(ledger).access_token, now, edge_lag=2.0) is good


def test_reuse_without_grace_revokes_the_grant() -> None:
    """Presenting a rotated refresh token kills the successor and every access token of the grant."""
    ledger = Ledger(ISSUER)
    first = login(ledger)
    second = refresh(ledger, first.refresh_token)
    with pytest.raises(DeniedError, match="invalid_grant"):
        refresh(ledger, first.refresh_token)
    with pytest.raises(DeniedError, match="has been revoked"):
        refresh(ledger, second.refresh_token)
    assert not ledger.accepts(second.access_token, 1002.0)
    assert (ledger.counters.reuses, ledger.counters.revocations, ledger.counters.refreshes) == (1, 1, 1)


def test_grace_yields_the_same_successor() -> None:
    """Within the grace period a replay gets the very pair the rotation gave, and nothing is counted."""
    ledger = Ledger(ISSUER)
    first = login(ledger)
    second = refresh(ledger, first.refresh_token, now=1001.0)
    assert refresh(ledger, first.refresh_token, now=1060.9, grace=60.0) == second
    assert ledger.counters.reuses == 0


def test_grace_ends_with_time() -> None:
    """A replay at the end of the grace period is reuse."""
    ledger = Ledger(ISSUER)
    first = login(ledger)
    refresh(ledger, first.refresh_token, now=1001.0)
    with pytest.raises(DeniedError, match="invalid_grant"):
        refresh(ledger, first.refresh_token, now=1061.0, grace=60.0)


def test_grace_ends_with_the_next_rotation() -> None:
    """Only the token rotated last enjoys grace; its predecessor is reuse even at once."""
    ledger = Ledger(ISSUER)
    first = login(ledger)
    second = refresh(ledger, first.refresh_token)
    refresh(ledger, second.refresh_token)
    with pytest.raises(DeniedError, match="invalid_grant"):
        refresh(ledger, first.refresh_token, grace=60.0)


def test_other_client_is_refused_without_revoking() -> None:
    """A refresh token shown by another client is invalid_client and stays good for its owner."""
    ledger = Ledger(ISSUER)
    pair = login(ledger)
    with pytest.raises(DeniedError, match="invalid_client"):
        ledger.refresh(pair.refresh_token or "", "stranger", 1001.0, 100.0)
    assert refresh(ledger, pair.refresh_token).grant == pair.grant


def test_team_must_name_its_principal() -> None:
    """A team grant refreshes only with its own principal named."""
    ledger = Ledger(ISSUER)
    pair = ledger.login("client", 1000.0, 100.0, principal=Principal("Team", "team-7"))
    token = pair.refresh_token or ""
    with pytest.raises(DeniedError, match="invalid_request"):
        ledger.refresh(token, "client", 1001.0, 100.0, principal=Principal("", ""))
    renewed = ledger.refresh(token, "client", 1001.0, 100.0, principal=Principal("Team", "team-7"))
    assert renewed.grant == pair.grant


def test_device_poll_pace() -> None:
    """Polling faster than the interval is told to slow down, and the interval grows by five seconds."""
    flow = DeviceFlow(Ledger(ISSUER))
    code = flow.start("client", "", 1000.0, expires_in=1800, interval=5, approved=False)

    def poll(now: float) -> str:
        with pytest.raises(DeniedError) as caught:
            flow.poll(code.device_code, "client", now, 100.0)
        return caught.value.error

    assert poll(1001.0) == "authorization_pending"
    assert poll(1006.0) == "authorization_pending"
    assert poll(1008.0) == "slow_down"
    assert poll(1014.0) == "slow_down"
    assert poll(1030.0) == "authorization_pending"
    assert poll(2800.0) == "expired_token"


def test_code_expires_and_works_once() -> None:
    """A code is refused after ten minutes, and a second use revokes what the first one gave."""
    ledger = Ledger(ISSUER)
    flow = CodeFlow(ledger)
    uri = "http://127.0.0.1/cb"

    def issue() -> str:
        return flow.issue(AuthorizationCode("client", uri, s256("v" * 43), "", "n", 1000.0))

    with pytest.raises(DeniedError, match="expired"):
        flow.redeem(issue(), "client", uri, "v" * 43, 1600.0, 100.0)
    code = issue()
    pair = flow.redeem(code, "client", uri, "v" * 43, 1001.0, 100.0)
    with pytest.raises(DeniedError, match="was used"):
        flow.redeem(code, "client", uri, "v" * 43, 1002.0, 100.0)
    assert not ledger.accepts(pair.access_token, 1003.0)
