"""No web page and no stranger spends the user's quota: the front door, through the real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Home, Proxy, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim

KEY = "a-key-of-enough-length"
PAGE = "https://page.example"


@pytest.fixture(scope="module")
def guarded(shared_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    home = Home(tmp_path_factory.mktemp("guarded"))
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(
        home,
        shared_sim,
        PROXY_API_KEY=KEY,
        PROXY_ALLOWED_HOSTS="proxy.lan,other.lan:9996",
        PROXY_ALLOWED_ORIGINS=f"{PAGE}, http://localhost:3000/",
    ) as proxy:
        yield proxy


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {KEY}"}, {"X-Api-Key": KEY},
     {"X-Proxy-Api-Key": KEY}, {"Authorization": "Bearer wrong", "X-Api-Key": KEY}],
)  # fmt: skip
def test_right_key(guarded: Proxy, headers: dict[str, str]) -> None:
    """The key opens in each of the three headers."""
    assert guarded.http.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Basic {KEY}"}, {"X-Api-Key": KEY[:-1]},
     {"X-Api-Key": "ключ".encode()}, {"Cookie": KEY}],
)  # fmt: skip
def test_wrong_key(guarded: Proxy, headers: dict[str, str]) -> None:
    """Without the right key there is a 401 that names the three headers, and nothing goes upstream."""
    answer = guarded.http.get("/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:1", "[::1]:9996", "proxy.lan", "PROXY.LAN:9", "other.lan:9996"]
)
def test_known_hosts(guarded: Proxy, host: str) -> None:
    """Loopback names and PROXY_ALLOWED_HOSTS are answered, on any port unless one is named."""
    assert guarded.http.get("/v1/models", headers={"Host": host, "X-Api-Key": KEY}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "other.lan", "10.0.0.1", "0.0.0.0"]
)
def test_rebound_hosts(guarded: Proxy, host: str) -> None:
    """A foreign name that was rebound to this machine is misdirected, even with the key."""
    answer = guarded.http.get("/health", headers={"Host": host, "X-Api-Key": KEY})
    assert answer.status_code == 421
    assert "PROXY_ALLOWED_HOSTS" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:9"},
     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)  # fmt: skip
def test_foreign_pages(shared_proxy: Proxy, headers: dict[str, str]) -> None:
    """A page elsewhere is refused with or without an Origin, though no key is set."""
    answer = shared_proxy.http.post("/v1/chat/completions", headers=headers, json={})
    assert answer.status_code == 403
    assert "PROXY_ALLOWED_ORIGINS" in answer.json()["error"]["message"]
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", ["TRACE", "trace"])
def test_trace(shared_proxy: Proxy, shared_sim: Sim, method: str) -> None:
    """The method whose answer would show our bearer to the client is not forwarded."""
    before = shared_sim.counters()["api_requests"]
    answer = shared_proxy.http.request(method, "/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_implemented")
    assert shared_sim.counters()["api_requests"] == before


def test_own_page(shared_proxy: Proxy) -> None:
    """The proxy's own origin is no foreign page."""
    assert shared_proxy.http.get("/v1/models", headers={"Origin": shared_proxy.url}).status_code == 200


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_allowed_page_can_read(guarded: Proxy, origin: str) -> None:
    """A page named in PROXY_ALLOWED_ORIGINS passes its preflight and may read the answer."""
    preflight = guarded.http.options(
        "/v1/chat/completions",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
            "Access-Control-Request-Private-Network": "true",
        },
    )
    assert preflight.status_code == 200
    guarded.err.wait_for(f"OPTIONS /v1/chat/completions 200 .* {preflight.headers['x-request-id']}")
    answer = guarded.http.get(
        "/v1/models", headers={"Origin": origin, "Sec-Fetch-Site": "cross-site", "X-Api-Key": KEY}
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-expose-headers"] == "*"


def test_a_second_origin_does_not_help(shared_proxy: Proxy) -> None:
    """A foreign origin is refused behind our own as well."""
    headers = [("Origin", shared_proxy.url), ("Origin", "https://evil.example")]
    assert shared_proxy.http.get("/v1/models", headers=headers).status_code == 403


def test_any_origin_is_not_a_setting(home: Home) -> None:
    """PROXY_ALLOWED_ORIGINS=* is refused: it would open the quota to every page."""
    ended = run(environment(home, PROXY_ALLOWED_ORIGINS="*"))
    assert ended.returncode == 2
    assert "name each origin" in ended.stderr
