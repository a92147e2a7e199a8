"""Hermes and the proxy on one store: new logins, the lock, and all that is none of the proxy's business."""

from __future__ import annotations

import json

import pytest

from tests.harness import Json
from tests.hermes.rig import (
    ADOPTED,
    LONG_LIFE,
    REFRESHED,
    SHAPES,
    SHORT_LIFE,
    Rig,
    Shape,
    chat,
    line_after,
    wait_until_fresh,
    wait_until_in_use,
)

POLL = {"HERMES_POLL_INTERVAL": 0.1}
RENEWED = ("access_token", "refresh_token", "id_token", "expires_in", "token_type", "last_refresh")
STRANGE: Json = {
    "text": 'ü \u2028 \U0001f600 "\\',
    "numbers": [0, -1, 2**70, 0.1, 1e-9, 1.0],
    "nested": [[], {}, None, True, [{"a": [False]}]],
    "": "",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_new_login_after_the_old_one_died(rig: Rig, shape: Shape) -> None:
    """After the grant was revoked a new login by Hermes is in use without a restart."""
    rig.login(shape)
    old = rig.home.refresh_tokens()
    with rig.proxy(**POLL) as proxy:
        assert "hello" in chat(proxy)
        rig.sim.http.post("/_sim/revoke").raise_for_status()
        refused = proxy.http.get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "invalid_grant")
        rig.login(shape)
        (new,) = rig.home.refresh_tokens() - old
        wait_until_in_use(proxy, new)
        assert "hello" in chat(proxy)
    counters = rig.sim.counters()
    assert (counters["logins"], counters["refreshes"], counters["reuses"]) == (2, 0, 0)


def test_new_login_in_place_of_the_old_one(rig: Rig) -> None:
    """A login that replaces one in use is in use at once: revoking the old grant harms nobody."""
    rig.login("provider")
    (old,) = rig.home.refresh_tokens()
    with rig.proxy(**POLL) as proxy:
        assert "hello" in chat(proxy)
        rig.login("provider")
        (new,) = rig.home.refresh_tokens()
        wait_until_in_use(proxy, new)
        rig.sim.http.post("/oauth2/revoke", data={"token": old}).raise_for_status()
        assert "hello" in chat(proxy)
    counters = rig.sim.counters()
    assert (counters["revocations"], counters["stale_rejections"], counters["refreshes"]) == (1, 0, 0)


def test_second_login_takes_over(rig: Rig) -> None:
    """With two logins in the pool the second one serves when the first is revoked, in the same request."""
    rig.login("pool")
    (old,) = rig.home.refresh_tokens()
    with rig.proxy(**POLL) as proxy:
        assert "hello" in chat(proxy)
        rig.login("pool")
        assert len(rig.home.refresh_tokens()) == 2
        rig.sim.http.post("/oauth2/revoke", data={"token": old}).raise_for_status()
        assert "hello" in chat(proxy)
    counters = rig.sim.counters()
    assert (counters["logins"], counters["revocations"], counters["reuses"]) == (2, 1, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_everything_else_survives(rig: Rig, shape: Shape) -> None:
    """A write-back changes the tokens alone: values and order of all other keys stay, and Hermes goes on."""
    rig.sim.patch(access_lifetime=SHORT_LIFE)
    rig.login(shape)
    rig.hermes("auth", "list")
    rig.sim.patch(access_lifetime=LONG_LIFE)
    rig.home.write_store(with_strangers(rig.home.read_store()))
    before, spent = without_tokens(rig.home.read_store()), rig.home.refresh_tokens()

    with rig.proxy() as proxy:
        wait_until_fresh(proxy, 0)
    assert without_tokens(rig.home.read_store()) == before
    assert not rig.home.refresh_tokens() & spent
    assert len(rig.home.refresh_tokens()) == 1

    assert "xai-oauth (1 credentials)" in rig.hermes("auth", "list")
    with rig.driver(shape) as driver:
        assert rig.sim.status_of(driver.resolve()) == 200
    assert rig.sim.counters()["refreshes"] == 1


def with_strangers(store: Json) -> Json:
    """The store of somebody who uses other providers too, and a Hermes that knows more keys."""
    block = store["providers"].get("xai-oauth")
    for place in (block, block and block["tokens"], *store["credential_pool"]["xai-oauth"]):
        if place is not None:
            place["of_a_later_hermes"] = STRANGE
    others: Json = {"elsewhere": {"tokens": {"access_token": "theirs", "refresh_token": "theirs"}, **STRANGE}}
    return {
        "of_a_later_hermes": STRANGE,
        **store,
        "providers": {**others, **store["providers"]},
        "active_provider": "elsewhere",
        "suppressed_sources": {"elsewhere": ["device_code"]},
    }


def without_tokens(store: Json) -> str:
    """The store as text in its own order, less what a refresh renews."""
    block = store["providers"].get("xai-oauth", {})
    for place in (block, block.get("tokens", {}), *store["credential_pool"]["xai-oauth"]):
        for name in RENEWED:
            place.pop(name, None)
    return json.dumps(store)


def test_hermes_holds_the_lock(rig: Rig) -> None:
    """While Hermes holds auth.lock the proxy sends no refresh but answers requests; then it goes on."""
    rig.login("pool")
    with rig.proxy(**POLL) as proxy, rig.driver("pool") as driver:
        rig.sim.patch(access_lifetime=8)
        seen = len(proxy.err.lines)
        driver.refresh()
        driver.do("hold")
        rig.sim.patch(access_lifetime=LONG_LIFE)
        line_after(proxy.err, ADOPTED, seen)
        sent = rig.sim.counters()["token_requests"]
        # The last quarter of a token's life is for refreshing; half of that quarter is let pass.
        while proxy.health()["token_seconds_to_expiry"] > 1:
            assert "hello" in chat(proxy)
            assert rig.sim.counters()["token_requests"] == sent
        seen = len(proxy.err.lines)
        driver.do("release")
        wait_until_fresh(proxy, seen)
        assert "hello" in chat(proxy)
    counters = rig.sim.counters()
    assert counters["token_requests"] == sent + 1
    assert (counters["reuses"], counters["revocations"]) == (0, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_proxy_holds_the_lock(rig: Rig, shape: Shape) -> None:
    """A refresh that Hermes wants while the proxy's is on its way waits, and goes on from the new link."""
    rig.login(shape)
    with rig.proxy(**POLL) as proxy, rig.driver(shape) as driver:
        driver.resolve()
        rig.sim.patch(access_lifetime=SHORT_LIFE, token_delay=0.5)
        driver.refresh()
        sent = rig.sim.counters()["token_requests"]
        rig.wait_for("token_requests", sent + 1)
        rig.sim.patch(access_lifetime=LONG_LIFE)
        driver.refresh()
        assert rig.sim.status_of(driver.resolve()) == 200
        assert "hello" in chat(proxy)
        assert any(REFRESHED in line for line in proxy.err.lines)
    counters = rig.sim.counters()
    assert (counters["reuses"], counters["revocations"]) == (0, 0)
