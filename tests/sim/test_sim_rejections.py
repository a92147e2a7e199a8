"""Every refusal of the API, asked for by name or earned by the token."""

from __future__ import annotations

import json

import pytest

from grok_oauth_proxy.sim.rejections import KINDS

from .harness import Sim

EXPECTED = {
    "stale-401": (401, "OAuth2 access token could not be validated"),
    "no-credentials": (401, "no-credentials"),
    "stale-403-flat": (403, '"code":"unauthenticated:bad-credentials"'),
    "stale-403-nested": (403, '"error":{"message"'),
    "stale-403-wke": (403, "[WKE=unauthenticated:bad-credentials]"),
    "entitlement": (403, "run out of available resources or do not have an active Grok subscription"),
    "spending-limit": (403, "personal-team-blocked:spending-limit"),
    "permission-denied": (403, "does not have permission"),
    "content": (403, "SAFETY_CHECK"),
    "quota-402": (402, "spending-limit"),
    "quota-429": (429, "subscription:free-usage-exhausted"),
    "rate-429": (429, "Some resource has been exhausted"),
    "bare-string": (400, '"The request could not be understood."'),
    "plain-text": (400, "Failed to deserialize"),
    "cloudflare-html": (502, "Cloudflare"),
}


def test_table_is_complete() -> None:
    """The table below covers every kind there is."""
    assert EXPECTED.keys() == KINDS.keys()


@pytest.mark.parametrize(("kind", "status", "text"), [(kind, *rest) for kind, rest in EXPECTED.items()])
def test_rejected_by_name(sim: Sim, kind: str, status: int, text: str) -> None:
    """x-sim: reject=KIND gives that refusal with its own status, without Retry-After."""
    reply = sim.http.get("/v1/models", headers=sim.bearer(x_sim=f"reject={kind}"))
    assert reply.status_code == status
    assert text in reply.text
    assert "retry-after" not in reply.headers
    assert sim.counters()["stale_rejections"] == int(kind.startswith("stale"))


def test_entitlement_does_not_look_stale() -> None:
    """No word of the stale refusals occurs in the entitlement, billing and content refusals."""
    for kind in ("entitlement", "spending-limit", "permission-denied", "content", "quota-402", "quota-429"):
        body = KINDS[kind].body.lower()
        assert not any(
            w in body for w in (b"unauthenticated:", b"bad-credentials", b"could not be validated")
        ), kind


@pytest.mark.parametrize(
    ("kind", "kind_of_text"), [("plain-text", "text/plain"), ("cloudflare-html", "text/html")]
)
@pytest.mark.parametrize("status", [404, 415, 522])
def test_status_goes_with_a_kind(sim: Sim, kind: str, kind_of_text: str, status: int) -> None:
    """status= replaces the status of a kind that comes with many."""
    reply = sim.http.get("/v1/models", headers=sim.bearer(x_sim=f"reject={kind};status={status}"))
    assert reply.status_code == status
    assert reply.headers["content-type"].startswith(kind_of_text)


def test_status_and_retry_after(sim: Sim) -> None:
    """A bare status is a flat JSON error, with Retry-After if asked for."""
    reply = sim.http.get("/v1/models", headers=sim.bearer(x_sim="status=503; retry-after=1"))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert reply.json().keys() == {"code", "error"}


def test_times_and_key(sim: Sim) -> None:
    """times=2;key=K strikes the first two requests with that key, and other keys not at all."""
    headers = sim.bearer(x_sim="reject=rate-429;times=2;key=a")
    other = {**headers, "x-sim": "status=503;times=1;key=b"}
    assert [sim.http.get("/v1/me", headers=headers).status_code for _ in range(2)] == [429, 429]
    assert sim.http.get("/v1/me", headers=other).status_code == 503
    assert [sim.http.get("/v1/me", headers=h).status_code for h in (headers, other)] == [200, 200]


@pytest.mark.parametrize("wrong", ["gremlin", "reject=gremlin", "status=9", "cut=ear", "sse=x", "times=2"])
def test_unknown_directives(sim: Sim, wrong: str) -> None:
    """A directive that does not parse is refused, so that a typing error cannot pass for success."""
    reply = sim.http.get("/v1/models", headers=sim.bearer(x_sim=wrong))
    assert reply.status_code == 400
    assert "x-sim" in reply.text or "times" in reply.text


def test_no_credentials(sim: Sim) -> None:
    """Without a bearer the API says no-credentials; OPTIONS alone needs none."""
    for headers in ({}, {"authorization": "Basic eDp5"}, {"authorization": "Bearer"}):
        reply = sim.http.get("/v1/models", headers=headers)
        assert reply.status_code == 401
        assert reply.json()["error"].startswith("no-credentials")
    assert sim.http.options("/v1/models").status_code == 204
    assert sim.counters()["stale_rejections"] == 0


@pytest.mark.parametrize(
    ("style", "status"), [("401", 401), ("403-flat", 403), ("403-nested", 403), ("403-wke", 403)]
)
def test_stale_styles(sim: Sim, style: str, status: int) -> None:
    """Unknown, expired and expired-by-force tokens are refused in the configured style and counted."""
    sim.patch(stale_style=style)
    forced = sim.login()["access_token"]
    sim.http.post("/_sim/expire-access").raise_for_status()
    for token in ("unknown", forced, sim.login(access_lifetime=0)["access_token"]):
        reply = sim.http.get("/v1/models", headers={"authorization": f"Bearer {token}"})
        assert reply.status_code == status
        assert "could not be validated" in reply.text
        json.loads(reply.text)
    assert sim.counters()["stale_rejections"] == 3


def test_expire_access_spares_refresh(sim: Sim) -> None:
    """After expire-access the refresh token still buys a token that works."""
    pair = sim.login()
    assert sim.http.post("/_sim/expire-access").json()["expired"] >= 1
    assert sim.status_of(pair["access_token"]) == 401
    assert sim.status_of(sim.refresh(pair["refresh_token"]).json()["access_token"]) == 200


def test_revoke_all(sim: Sim) -> None:
    """POST /_sim/revoke ends every grant and says how many there were."""
    pair = sim.login()
    assert sim.http.post("/_sim/revoke").json()["revoked"] >= 1
    assert sim.status_of(pair["access_token"]) == 401
    assert sim.refresh(pair["refresh_token"]).json()["error"] == "invalid_grant"
    assert sim.http.post("/_sim/revoke").json()["revoked"] == 0


def test_edge_lag(sim: Sim) -> None:
    """A token younger than edge_lag gets 403 bad-credentials and works once the edge has caught up."""
    sim.patch(edge_lag=3600)
    token = sim.login()["access_token"]
    assert sim.status_of(token) == 403
    sim.patch(edge_lag=0)
    assert sim.status_of(token) == 200


def test_oauth_refused_but_api_key_good(sim: Sim) -> None:
    """reject_oauth refuses every OAuth token while a console API key passes."""
    sim.patch(reject_oauth="entitlement")
    assert "active Grok subscription" in sim.http.get("/v1/me", headers=sim.bearer()).text
    assert sim.status_of("xai-sim-key") == 200
