"""A refused token is refreshed once and the request sent once more, unseen by the client."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from grok_oauth_proxy.credentials.token import read_token
from tests.credentials.fakes import bearer
from tests.harness import (
    PATIENCE,
    Home,
    Proxy,
    before_bare_api,
    provider_store,
    proxy_running,
    write_expired_login,
)
from tests.sim.harness import Sim
from tests.survival.scene import write_due_login

STYLES = ["401", "403-flat", "403-nested", "403-wke"]


def old_login(sim: Sim) -> dict[str, object]:
    """A login whose access token the API refuses, as after a revocation of access tokens only."""
    tokens = sim.login()
    sim.http.post("/_sim/expire-access").raise_for_status()
    return tokens


@pytest.mark.parametrize("style", STYLES)
def test_refreshed_and_resent(home: Home, own_sim: Sim, style: str) -> None:
    """Whatever shape the refusal has, a POST with a body succeeds with one refresh."""
    own_sim.patch(stale_style=style)
    home.write_store(provider_store(old_login(own_sim)))
    with proxy_running(home, own_sim) as proxy:
        answer = proxy.http.post("/v1/echo", content=b"the body")
        assert answer.status_code == 200
        assert answer.json()["body_length"] == len(b"the body")
        assert own_sim.counters()["refreshes"] == 1
        assert proxy.metric("proxy_oauth_401_refresh_attempt_total") == 1
        assert proxy.metric("proxy_oauth_401_refresh_success_total") == 1
        assert proxy.metric("proxy_oauth_401_refresh_failure_total") == 0


def test_refusal_in_a_foreign_coding(home: Home, own_sim: Sim) -> None:
    """A client that accepts Brotli asks for it, and a refusal that comes in it is understood all the same."""
    own_sim.patch(stale_style="403-flat")
    home.write_store(provider_store(old_login(own_sim)))
    accepting = {"accept-encoding": "br, gzip;q=0.5", "x-sim": "br"}
    with proxy_running(home, own_sim) as proxy:
        with proxy.http.stream("POST", "/v1/echo", content=b"the body", headers=accepting) as answer:
            raw = b"".join(answer.iter_raw())
        assert (answer.status_code, answer.headers["content-encoding"]) == (200, "br")
        assert b'["accept-encoding","br, gzip;q=0.5"]' in raw
        assert own_sim.counters()["refreshes"] == 1


def test_foreign_coding_of_another_refusal(shared_proxy: Proxy, shared_sim: Sim) -> None:
    """A refusal that is not about the token is asked for once more at most, and spends no refresh."""
    before = shared_sim.counters()["token_requests"]
    headers = {"accept-encoding": "br", "x-sim": "br;reject=entitlement"}
    answer = shared_proxy.http.post("/v1/echo", headers=headers)
    assert answer.status_code == 403
    assert "active Grok subscription" in answer.text
    assert shared_sim.counters()["token_requests"] == before


def test_foreign_coding_and_no_second_answer(home: Home, own_sim: Sim) -> None:
    """A refusal in a coding unknown here is delivered as it came when asking once more fails."""
    head = b"HTTP/1.1 403 Forbidden\r\nContent-Encoding: br\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"

    def ask() -> tuple[int, bytes]:
        with proxy.http.stream("POST", "/v1/x", headers={"accept-encoding": "br"}) as answer:
            return answer.status_code, b"".join(answer.iter_raw())

    with before_bare_api(home, own_sim) as (listener, proxy), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        first, _ = listener.accept()
        with first:
            first.recv(65536)
            first.sendall(head + b"gone")
            second, _ = listener.accept()
            second.recv(65536)
            second.close()
            assert asking.result(PATIENCE) == (403, b"gone")


def test_many_refused_at_once_cost_one_refresh(home: Home, own_sim: Sim) -> None:
    """Twenty requests refused together are all answered, and the login is refreshed once."""
    home.write_store(provider_store(old_login(own_sim)))
    with proxy_running(home, own_sim) as proxy:
        with ThreadPoolExecutor(20) as pool:
            statuses = list(pool.map(lambda _: proxy.http.post("/v1/echo").status_code, range(20)))
        assert statuses == [200] * 20
        assert own_sim.counters()["refreshes"] == 1
        assert own_sim.counters()["reuses"] == 0


def test_young_token_is_first_sent_again(home: Home, own_sim: Sim) -> None:
    """A token the edge does not know yet is waited for, not refreshed."""
    own_sim.patch(edge_lag=0.8)
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        own_sim.http.post("/_sim/expire-access").raise_for_status()
        # The first request refreshes; the edge learns of the new token late.
        assert proxy.http.get("/v1/models").status_code == 200
        assert own_sim.counters()["refreshes"] == 1


def test_each_stale_token_is_refreshed(home: Home, own_sim: Sim) -> None:
    """However soon after the last one a token goes stale, a refresh that helps is made."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        for number in (1, 2, 3):
            own_sim.http.post("/_sim/expire-access").raise_for_status()
            assert proxy.http.post("/v1/echo").status_code == 200
            assert own_sim.counters()["refreshes"] == number


def test_token_from_the_future(home: Home, own_sim: Sim) -> None:
    """With a clock that is an hour behind, a refused token is refreshed as ever."""
    login = own_sim.login()
    client = read_token(str(login["access_token"])).client_id
    ahead = bearer("unknown", issued=time.time() + 3600, client=client)
    home.write_store(provider_store(login | {"access_token": ahead}))
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.post("/v1/echo").status_code == 200
        assert own_sim.counters()["refreshes"] == 1


def test_many_paths_that_refuse(home: Home, own_sim: Sim) -> None:
    """An API that refuses every token, whatever is asked, costs a handful of refreshes and no more."""
    home.write_store(provider_store(own_sim.login()))
    refused = {"x-sim": "reject=stale-401"}
    with proxy_running(home, own_sim) as proxy:
        with ThreadPoolExecutor(12) as pool:
            answers = pool.map(lambda n: proxy.http.get(f"/v1/echo/{n}", headers=refused), range(24))
            assert {answer.status_code for answer in answers} == {401}
        assert proxy.http.get("/v1/echo/other", headers=refused).status_code == 401
        assert own_sim.counters()["refreshes"] <= 5


def test_paths_that_refuse_do_not_hurt_others(home: Home, own_sim: Sim) -> None:
    """After many paths refused every token, one that took tokens has its stale one refreshed as ever."""
    home.write_store(provider_store(own_sim.login()))
    refused = {"x-sim": "reject=stale-401"}
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.post("/v1/echo").status_code == 200
        for number in range(6):
            assert proxy.http.get(f"/v1/echo/{number}", headers=refused).status_code == 401
        own_sim.http.post("/_sim/expire-access").raise_for_status()
        assert proxy.http.post("/v1/echo").status_code == 200


def test_large_body_and_a_young_token(home: Home, own_sim: Sim) -> None:
    """An upload that cannot be sent again spends no refresh on a token the edge does not know yet."""
    own_sim.patch(edge_lag=30)
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, REPLAY_BODY_LIMIT=1000) as proxy:
        answer = proxy.http.post("/v1/echo", content=b"x" * 2000)
        assert (answer.status_code, answer.headers["x-should-retry"]) == (413, "true")
        assert own_sim.counters()["refreshes"] == 0


def test_constant_refusal_is_delivered(home: Home, own_sim: Sim) -> None:
    """A refusal that no refresh cures reaches the client within three seconds, at the cost of one refresh."""
    home.write_store(provider_store(own_sim.login()))
    refused = {"x-sim": "reject=stale-401"}
    with proxy_running(home, own_sim) as proxy:
        began = time.monotonic()
        assert proxy.http.post("/v1/echo", headers=refused).status_code == 401
        assert time.monotonic() - began < 3.5
        for _ in range(3):
            assert proxy.http.post("/v1/echo", headers=refused).status_code == 401
        assert own_sim.counters()["refreshes"] == 1
        assert proxy.metric("proxy_oauth_401_refresh_failure_total") == 4


def test_large_body_is_not_sent_twice(home: Home, own_sim: Sim) -> None:
    """A refused body too large to be kept costs a 413 that says what to do; trying again succeeds."""
    home.write_store(provider_store(own_sim.login()))
    body = b"x" * 2000
    with proxy_running(home, own_sim, REPLAY_BODY_LIMIT=1000) as proxy:
        home.write_store(provider_store(old_login(own_sim)))
        proxy.err.wait_for("Tokens written by hermes are now in use")
        # The token is young, so that the edge may not know it yet: renewed only when it is refused again.
        for refreshes in (0, 1):
            answer = proxy.http.post("/v1/echo", content=body)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "body_not_resendable"
            assert answer.headers["x-should-retry"] == "true"
            assert own_sim.counters()["refreshes"] == refreshes
        assert proxy.http.post("/v1/echo", content=body).json()["body_length"] == 2000


def test_expired_token_is_refreshed_before_the_request(home: Home, own_sim: Sim) -> None:
    """A login that expired while the proxy was off is refreshed on start, and no request sees it."""
    write_expired_login(home, own_sim)
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        assert own_sim.counters()["stale_rejections"] == 0


def test_no_credentials_is_no_stale_token(shared_proxy: Proxy, shared_sim: Sim) -> None:
    """A 401 that speaks of missing credentials costs no refresh."""
    before = shared_sim.counters()["token_requests"]
    answer = shared_proxy.http.get("/v1/models", headers={"x-sim": "reject=no-credentials"})
    assert answer.status_code == 401
    assert shared_sim.counters()["token_requests"] == before


def test_revoked_login_tells_what_to_do(home: Home, own_sim: Sim) -> None:
    """A dead login is a 503 with the next step, one call to the token endpoint, and an honest health."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        own_sim.http.post("/_sim/revoke").raise_for_status()
        for _ in range(5):
            answer = proxy.http.post("/v1/echo")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "invalid_grant"
            assert "hermes auth add xai-oauth" in answer.json()["error"]["message"]
        assert own_sim.counters()["token_requests"] == 1
        report = proxy.http.get("/health")
        assert (report.status_code, report.json()["status"]) == (503, "unauthenticated")
        assert report.json()["oauth_refresh"]["last_refresh_error_class"] == "invalid_grant"


def test_revoked_just_after_a_refresh_ahead_of_time(home: Home, own_sim: Sim) -> None:
    """The old token that still serves for a moment does not hide that the login is dead."""
    write_due_login(home, own_sim)
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for("The access token was refreshed")
        own_sim.http.post("/_sim/revoke").raise_for_status()
        answer = proxy.http.post("/v1/echo")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "invalid_grant")


def test_dead_login_is_not_sent_again_after_a_restart(home: Home, own_sim: Sim) -> None:
    """A restart does not try a dead login again; a new one in the store is live at once."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        own_sim.http.post("/_sim/revoke").raise_for_status()
        assert proxy.http.post("/v1/echo").status_code == 503
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.post("/v1/echo").status_code == 503
        assert own_sim.counters()["token_requests"] == 1
        home.write_store(provider_store(own_sim.login()))
        proxy.err.wait_for("Tokens written by hermes are now in use")
        assert proxy.http.post("/v1/echo").status_code == 200


def test_not_entitled_account(home: Home, own_sim: Sim) -> None:
    """A 403 of the token endpoint is told as what it is, asked for once, and no new login is suggested."""
    home.write_store(provider_store(old_login(own_sim)))
    own_sim.http.post("/_sim/token-faults", json={"kind": "403-json", "times": 5}).raise_for_status()
    with proxy_running(home, own_sim) as proxy:
        for _ in range(3):
            error = proxy.http.post("/v1/echo").json()["error"]
            assert error["code"] == "not_entitled"
            assert "Signing in again will not help" in error["message"]
        assert own_sim.counters()["token_requests"] == 1


@pytest.mark.parametrize("fault", ["500", "403-html", "drop-before"])
def test_transient_failure_is_survived(home: Home, own_sim: Sim, fault: str) -> None:
    """A token endpoint that fails is asked again by itself, and requests go on meanwhile."""
    own_sim.http.post("/_sim/token-faults", json={"kind": fault, "times": 1}).raise_for_status()
    home.write_store(provider_store(own_sim.login(access_lifetime=240, age=190)))  # due, and good for long
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for("could not be refreshed")
        assert proxy.http.get("/v1/models").status_code == 200
        proxy.err.wait_for("The access token was refreshed")
        assert proxy.http.get("/v1/models").status_code == 200
        assert proxy.health()["status"] == "ok"
        assert own_sim.counters()["revocations"] == 0


def test_one_path_that_always_refuses(home: Home, own_sim: Sim) -> None:
    """A path that answers 401 to every token costs one refresh, though other paths are answered."""
    home.write_store(provider_store(old_login(own_sim)))
    with proxy_running(home, own_sim) as proxy:
        for _ in range(3):
            assert proxy.http.get("/v1/models").status_code == 200
            assert proxy.http.post("/v1/echo", headers={"x-sim": "reject=stale-401"}).status_code == 401
        assert own_sim.counters()["refreshes"] == 2  # one that helped /v1/models, one for /v1/echo


def test_edge_that_learns_late_after_an_expiry(home: Home, own_sim: Sim) -> None:
    """A request that waited for a refresh, and whose new token is refused at first, spends no second one."""
    write_expired_login(home, own_sim)
    own_sim.patch(edge_lag=1.2)
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        assert own_sim.counters()["refreshes"] == 1


def test_edge_lag_is_not_noticed_ahead_of_time(home: Home, own_sim: Sim) -> None:
    """After a refresh ahead of time the old token serves on, so that a late edge refuses nothing."""
    write_due_login(home, own_sim, age=60)
    own_sim.patch(edge_lag=20)
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for("The access token was refreshed")
        for _ in range(50):
            assert proxy.http.get("/v1/models").status_code == 200
        counters = own_sim.counters()
        assert (counters["refreshes"], counters["stale_rejections"]) == (1, 0)
