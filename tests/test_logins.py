"""Whose login is used: the proxy's own, Hermes', or an API key; and the way from one to the other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cli.own import own_login
from tests.harness import PATIENCE, Home, Json, Proxy, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim

KEY = "xai-sim-key"
QUESTION = {"model": "grok-4", "messages": [{"role": "user", "content": "x"}]}


def wait_until(reached: Callable[[], bool], proxy: Proxy) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, "\n".join(proxy.err.lines)
        time.sleep(0.02)


def carried(sim: Sim) -> list[int | None]:
    """What the API was sent, in order: the number of an access token as it was issued, None for the key."""
    return [record["bearer_serial"] for record in sim.requests()]


def revoke(sim: Sim, tokens: Json) -> None:
    """End one login, as somebody signed out of it elsewhere."""
    sim.http.post("/oauth2/revoke", data={"token": tokens["refresh_token"]}).raise_for_status()


def both(home: Home, sim: Sim, **own: object) -> tuple[Json, Json]:
    """A login of the proxy's own and one of Hermes'."""
    mine, hers = sim.login(**own), sim.login()
    own_login(home, mine)
    home.write_store(provider_store(hers))
    return mine, hers


# The proxy's own.


def test_own_login_goes_first(home: Home, own_sim: Sim) -> None:
    """With both there, the own login is used and refreshed, and Hermes' store and lock are left alone."""
    both(home, own_sim, access_lifetime=3)
    before = home.auth.read_bytes()
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for("The access token was refreshed")
        assert proxy.http.get("/v1/models").status_code == 200
        report = proxy.health()
    assert report["credential_source"] == "own"
    assert report["owner"].startswith("The login is the proxy's own")
    assert report["account"] == {"tier": 1, "principal_type": "User"}
    assert home.auth.read_bytes() == before
    assert [path.name for path in home.auth.parent.iterdir()] == ["auth.json"]
    assert own_sim.counters()["reuses"] == 0


def test_own_login_survives_a_restart(home: Home, own_sim: Sim) -> None:
    """Each start goes on from the link that the one before has saved."""
    own_sim.patch(access_lifetime=3)
    own_login(home, own_sim.login())
    for _ in range(3):
        with proxy_running(home, own_sim) as proxy:
            proxy.err.wait_for("The access token was refreshed")
            assert proxy.http.get("/v1/models").status_code == 200
            assert proxy.stop() == 0
    assert own_sim.counters()["refreshes"] >= 3
    assert own_sim.counters()["reuses"] == 0


def test_two_proxies_on_one_own_login(home: Home, own_sim: Sim) -> None:
    """Two proxies, one of them with two workers, rotate one own login in turn, without a reuse."""
    own_sim.patch(access_lifetime=2)
    own_login(home, own_sim.login())
    with (
        proxy_running(home, own_sim) as one,
        proxy_running(home, own_sim, PROXY_WORKERS=2) as other,
        ThreadPoolExecutor(8) as pool,
    ):
        while own_sim.counters()["refreshes"] < 4:
            statuses = list(
                pool.map(lambda n: (one, other)[n % 2].http.get("/v1/models").status_code, range(16))
            )
            assert statuses == [200] * 16
    assert own_sim.counters()["reuses"] == 0
    assert own_sim.counters()["revocations"] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_dead_own_login_gives_way(home: Home, own_sim: Sim, workers: int) -> None:
    """When the own login is revoked, Hermes' serves in the same request, and that is said loudly."""
    mine, _ = both(home, own_sim)
    with proxy_running(home, own_sim, PROXY_WORKERS=workers) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        revoke(own_sim, mine)
        before = own_sim.counters()["token_requests"]
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda _: proxy.http.post("/v1/echo").status_code, range(8)))
        assert statuses == [200] * 8
        assert own_sim.counters()["token_requests"] == before + 1
        if workers > 1:  # each tells of itself, and the one that is asked may have had none of the requests
            wait_until(lambda: proxy.health()["credential_source"] == "hermes", proxy)
        report = proxy.health()
        assert (report["status"], report["credential_source"]) == ("degraded", "hermes")
        assert report["problem"]["code"] == "own_login_dead"
        assert "grok-oauth-proxy login" in report["problem"]["message"]
        proxy.err.wait_for(r"WARNING The proxy's own login is no longer good.*\[own_login_dead\]")


@pytest.mark.parametrize("hermes_lives", [True, False])
def test_stale_token_behind_a_dead_login(home: Home, own_sim: Sim, hermes_lives: bool) -> None:
    """The other login's access token, stale too, is refreshed in the same request; or its death is told."""
    mine, hers = both(home, own_sim)
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        own_sim.http.post("/_sim/expire-access").raise_for_status()
        revoke(own_sim, mine)
        if not hermes_lives:
            revoke(own_sim, hers)
        answer = proxy.http.get("/v1/models")
        if hermes_lives:
            assert answer.status_code == 200
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "invalid_grant")
            assert proxy.health()["status"] == "unauthenticated"
    assert own_sim.counters()["reuses"] == 0


def test_dead_own_login_at_the_start(home: Home, own_sim: Sim) -> None:
    """A login that is known to be dead is passed over at the start too, and told."""
    own_login(home, own_sim.login(), dead="invalid_grant")
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        assert proxy.health()["problem"]["code"] == "own_login_dead"
    assert own_sim.counters()["token_requests"] == 0


def test_hermes_signs_in_after_the_own_login_died(home: Home, own_sim: Sim) -> None:
    """A login that Hermes gets when the own one is dead already is used without a restart."""
    mine = own_sim.login()
    own_login(home, mine)
    with proxy_running(home, own_sim) as proxy:
        revoke(own_sim, mine)
        answer = proxy.http.get("/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "invalid_grant")
        assert "`grok-oauth-proxy login`" in answer.json()["error"]["message"]
        assert proxy.health()["status"] == "unauthenticated"
        home.write_store(provider_store(own_sim.login()))
        wait_until(lambda: proxy.http.get("/v1/models").status_code == 200, proxy)
        assert proxy.health()["credential_source"] == "hermes"


def test_new_own_login(home: Home, own_sim: Sim) -> None:
    """`login` while Hermes' login serves is used without a restart; that Hermes' lives on changes nothing."""
    mine, _ = both(home, own_sim)
    with proxy_running(home, own_sim) as proxy:
        revoke(own_sim, mine)
        assert proxy.http.get("/v1/models").status_code == 200
        assert proxy.health()["credential_source"] == "hermes"
        own_sim.patch(device_interval=1)
        assert run(environment(home, own_sim), "login").returncode == 0
        wait_until(lambda: proxy.health()["credential_source"] == "own", proxy)
        assert proxy.health()["problem"] is None
        home.write_store(provider_store(own_sim.login()))
        assert proxy.http.get("/v1/models").status_code == 200
        assert proxy.health()["credential_source"] == "own"


def test_logged_out(home: Home, own_sim: Sim) -> None:
    """After `logout` the running proxy gives the token up, and uses Hermes' login if there is one."""
    own_login(home, own_sim.login())
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        assert run(environment(home, own_sim), "logout", "--yes").returncode == 0
        wait_until(lambda: proxy.http.get("/v1/models").status_code == 503, proxy)
        assert (
            "Sign in with `grok-oauth-proxy login`" in proxy.http.get("/v1/models").json()["error"]["message"]
        )
        home.write_store(provider_store(own_sim.login()))
        wait_until(lambda: proxy.http.get("/v1/models").status_code == 200, proxy)
        assert proxy.health()["credential_source"] == "hermes"


@pytest.mark.parametrize("source", ["own", "hermes"])
def test_only_the_one(home: Home, own_sim: Sim, source: str) -> None:
    """CREDENTIAL_SOURCE names the one login that is used, whatever becomes of it."""
    mine, hers = both(home, own_sim)
    used, number = {"own": (mine, 1), "hermes": (hers, 2)}[source]
    with proxy_running(home, own_sim, CREDENTIAL_SOURCE=source) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        assert set(carried(own_sim)) == {number}
        revoke(own_sim, used)
        assert proxy.http.get("/v1/models").status_code == 503


def test_own_login_wanted_and_none_there(home: Home, own_sim: Sim) -> None:
    """CREDENTIAL_SOURCE=own without such a login refuses the start and says how to sign in."""
    home.write_store(provider_store(own_sim.login()))
    ended = run(environment(home, own_sim, CREDENTIAL_SOURCE="own"))
    assert ended.returncode == 3
    assert "Sign in with `grok-oauth-proxy login`." in ended.stderr


# An API key.


def test_key_alone(home: Home, own_sim: Sim) -> None:
    """CREDENTIAL_SOURCE=api-key sends the key and nothing else, without any login."""
    with proxy_running(home, own_sim, CREDENTIAL_SOURCE="api-key", XAI_API_KEY=KEY) as proxy:
        assert proxy.http.post("/v1/chat/completions", json=QUESTION).status_code == 200
        report = proxy.health()
    assert set(carried(own_sim)) == {None}
    assert (report["status"], report["credential_source"], report["token_endpoint"]) == (
        "ok",
        "api-key",
        None,
    )
    assert own_sim.counters()["token_requests"] == 0


def test_key_that_is_refused(home: Home, own_sim: Sim) -> None:
    """A key the API does not take is told in plain words, at once."""
    with proxy_running(home, own_sim, CREDENTIAL_SOURCE="api-key", XAI_API_KEY="wrong-key") as proxy:
        answer = proxy.http.get("/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "api_key_refused")
        assert "XAI_API_KEY" in answer.json()["error"]["message"]
        assert proxy.health()["status"] == "unauthenticated"
        assert "wrong-key" not in "\n".join(proxy.err.lines) + answer.text


@pytest.mark.parametrize(
    "settings", [{"CREDENTIAL_SOURCE": "api-key"}, {"API_KEY_FALLBACK": "entitlement"}], ids=lambda s: str(*s)
)
def test_no_key(home: Home, own_sim: Sim, settings: dict[str, str]) -> None:
    """What needs a key does not start without one, and names it."""
    home.write_store(provider_store(own_sim.login()))
    ended = run(environment(home, own_sim, **settings))
    assert ended.returncode == 2
    assert "XAI_API_KEY" in ended.stderr


def test_entitlement_without_the_key(home: Home, own_sim: Sim) -> None:
    """A refusal for entitlement passes through and is explained in health; a key that is set is not sent."""
    home.write_store(provider_store(own_sim.login()))
    own_sim.patch(reject_oauth="entitlement")
    with proxy_running(home, own_sim, XAI_API_KEY=KEY) as proxy:
        answer = proxy.http.post("/v1/chat/completions", json=QUESTION)
        assert answer.status_code == 403
        assert "active Grok subscription" in answer.text
        report = proxy.health()
        assert report["status"] == "degraded"
        assert report["last_rejection"]["kind"] == "entitlement"
        assert "Signing in again will not help" in report["last_rejection"]["remedy"]
        assert report["api_key_fallback"] is None
        own_sim.patch(reject_oauth="")
        assert proxy.http.post("/v1/chat/completions", json=QUESTION).status_code == 200
        assert proxy.health()["status"] == "ok"
        assert proxy.health()["last_rejection"]["kind"] == "entitlement"
    assert None not in carried(own_sim)


def test_entitlement_with_the_key(home: Home, own_sim: Sim) -> None:
    """Switched on, such a request is sent once more with the key: counted, logged, and seen in health."""
    home.write_store(provider_store(own_sim.login()))
    own_sim.patch(reject_oauth="entitlement")
    with proxy_running(home, own_sim, XAI_API_KEY=KEY, API_KEY_FALLBACK="entitlement") as proxy:
        assert proxy.http.post("/v1/chat/completions", json=QUESTION).status_code == 200
        assert carried(own_sim) == [1, None]
        assert proxy.health()["api_key_fallback"] == {"requests": 1}
        assert proxy.metric("proxy_api_key_fallback_total") == 1
        proxy.err.wait_for(r"billed separately\. \[api_key_fallback\]")
        own_sim.patch(reject_oauth="quota-429")
        assert proxy.http.post("/v1/chat/completions", json=QUESTION).status_code in (402, 429)
        assert proxy.health()["status"] == "degraded"
    assert carried(own_sim).count(None) == 1
    assert own_sim.counters()["token_requests"] == 0


def test_account_that_is_not_entitled_to_tokens(home: Home, own_sim: Sim) -> None:
    """Where the authorization server itself refuses the account, the key serves as well."""
    home.write_store(provider_store(own_sim.login(access_lifetime=1)))
    own_sim.http.post("/_sim/token-faults", json={"kind": "403-json", "times": 9}).raise_for_status()
    with proxy_running(home, own_sim, XAI_API_KEY=KEY, API_KEY_FALLBACK="entitlement") as proxy:
        proxy.err.wait_for(r"\[not_entitled\]")
        wait_until(lambda: proxy.http.get("/v1/models").is_success and None in carried(own_sim), proxy)
        answer = proxy.http.post("/v1/chat/completions", json=QUESTION)
        assert (answer.status_code, carried(own_sim)[-1]) == (200, None)
        assert proxy.metric("proxy_api_key_fallback_total") == carried(own_sim).count(None)


def test_wrong_key_in_the_second_place(home: Home, own_sim: Sim) -> None:
    """When the key is refused too, the answer to it is delivered, and no refresh is spent for it."""
    home.write_store(provider_store(own_sim.login()))
    own_sim.patch(reject_oauth="entitlement")
    with proxy_running(home, own_sim, XAI_API_KEY="wrong-key", API_KEY_FALLBACK="entitlement") as proxy:
        assert proxy.http.post("/v1/chat/completions", json=QUESTION).status_code == 401
    assert own_sim.counters()["token_requests"] == 0


# What the API says of the account.


def test_rate_limits(home: Home, own_sim: Sim) -> None:
    """What is left of the rate limits is in health, as the last answer told it."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        assert proxy.health()["rate_limits"] is None
        answer = proxy.http.post("/v1/chat/completions", json=QUESTION)
        proxy.http.get("/v1/models")
        limits = proxy.health()["rate_limits"]
    for name in ("limit_requests", "remaining_requests", "limit_tokens", "remaining_tokens"):
        assert limits[name] == int(answer.headers[f"x-ratelimit-{name.replace('_', '-')}"])


def test_state_beside_the_own_login(home: Home, own_sim: Sim) -> None:
    """The state file cannot take the own login's place."""
    both(home, own_sim)
    env = environment(home, own_sim, GROK_PROXY_AUTH_STATE=home.state.with_name("login.json"))
    ended = run(env)
    assert ended.returncode == 2
    assert json.loads(home.state.with_name("login.json").read_text())["source"] == "own"
