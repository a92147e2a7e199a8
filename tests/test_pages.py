"""What the proxy shows of itself: health and metrics, through the real server."""

from __future__ import annotations

import re
import socket

import httpx
import pytest

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.observe.health import UpstreamPing
from grok_oauth_proxy.observe.news import News
from grok_oauth_proxy.web.pages import create_pages
from tests.harness import Home, Proxy, provider_store, proxy_running
from tests.observe.test_health import WELL
from tests.sim.harness import Sim


def test_health_report(shared_proxy: Proxy, shared_sim: Sim) -> None:
    """Health has every field that was promised, and 200 while there is a usable token."""
    answer = shared_proxy.http.get("/health")
    report = answer.json()
    assert answer.status_code == 200
    assert report["status"] == "ok"
    assert report["provider"] == "xai-oauth"
    assert report["api_base"] == f"{shared_sim.url}/v1"
    assert report["credential_source"] == "hermes"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", report["token_expires_at"])
    assert 21000 < report["token_seconds_to_expiry"] < 21600
    assert report["token_endpoint"] == f"{shared_sim.url}/oauth2/token"
    assert set(report["oauth_refresh"]) == {
        "last_refresh_at",
        "last_refresh_status",
        "last_refresh_error_class",
        "refresh_token_rotated",
        "refresh_success_count",
        "refresh_failure_count",
    }
    assert re.fullmatch(r"\d+\.\d+\.\d+", report["version"])


def test_health_after_a_refresh(home: Home, own_sim: Sim) -> None:
    """A refresh shows in health, and the last one is still known after a restart."""
    home.write_store(provider_store(own_sim.login(access_lifetime=3)))
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for("The access token was refreshed")
        refresh = proxy.health()["oauth_refresh"]
        assert refresh["last_refresh_status"] == "success"
        assert refresh["refresh_token_rotated"] is True
        assert refresh["refresh_success_count"] == 1
        assert proxy.metric("proxy_oauth_refresh_success_total") == 1
        assert proxy.metric("proxy_oauth_refresh_token_rotated") == 1
    with proxy_running(home, own_sim) as proxy:
        assert proxy.health()["oauth_refresh"]["last_refresh_at"] == refresh["last_refresh_at"]


def test_deep_health(shared_proxy: Proxy) -> None:
    """A deep check asks the API and tells its status and latency."""
    upstream = shared_proxy.http.get("/health?deep=1").json()["upstream"]
    assert upstream["status"] == 200
    assert upstream["latency_ms"] > 0


def test_deep_health_without_upstream(home: Home, own_sim: Sim) -> None:
    """When the API does not answer, a deep check says so with 503, a plain one stays 200."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, XAI_BASE_URL="http://127.0.0.1:9/v1") as proxy:
        deep = proxy.http.get("/health?deep=1")
        assert (deep.status_code, deep.json()["status"]) == (503, "upstream_failing")
        assert deep.json()["upstream"]["error"] == "unreachable"
        assert proxy.http.get("/health").status_code == 200


def test_deep_health_has_an_end(home: Home, own_sim: Sim) -> None:
    """An API that never answers does not hold a deep check for longer than ten seconds or so."""
    home.write_store(provider_store(own_sim.login()))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        upstream = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with proxy_running(home, own_sim, XAI_BASE_URL=upstream) as proxy:
            deep = proxy.http.get("/health?deep=1")
            assert deep.status_code == 503
            assert deep.json()["upstream"]["error"] == "timeout"


@pytest.mark.parametrize("path", ["/health", "/metrics", "/health?deep=what"])
def test_pages_answer_head(shared_proxy: Proxy, path: str) -> None:
    """HEAD is answered like GET, without a body, and an odd query is no error."""
    answer = shared_proxy.http.head(path)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"].startswith("req_")


def test_metrics_are_counted(home: Home, own_sim: Sim) -> None:
    """Requests, times, rejections and errors are counted under fixed labels, whatever a client invents."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        for number in range(3):
            proxy.http.get(f"/v1/models/grok-{number}")
            proxy.http.request(f"INVENTED{number}", f"/v1/invented/{number}")
        proxy.http.post("/v1/chat/completions", headers={"x-sim": "reject=entitlement"})
        text = proxy.http.get("/metrics").text
    assert 'proxy_requests_total{method="other",route="other",status="404"} 3.0' in text
    assert 'route="/v1/models/{id}"' in text
    assert 'proxy_upstream_rejections_total{kind="entitlement"} 1.0' in text
    assert "invented" not in text.lower()
    for name in (
        "proxy_request_duration_seconds_bucket",
        "proxy_time_to_first_byte_seconds_bucket",
        "proxy_requests_in_flight",
        "proxy_token_seconds_to_expiry",
        "proxy_oauth_refresh_success_total",
        "proxy_oauth_refresh_token_rotated",
        "proxy_oauth_401_refresh_attempt_total",
        "proxy_oauth_401_refresh_success_total",
        "proxy_oauth_401_refresh_failure_total",
    ):
        assert f"\n{name}" in text
    assert "# TYPE proxy_oauth_refresh_failure_total counter" in text
    assert "# TYPE proxy_upstream_errors_total counter" in text


def test_one_line_a_request(shared_proxy: Proxy) -> None:
    """The log has one line for a request: method, path without query, status, duration, bytes, id."""
    answer = shared_proxy.http.post("/v1/echo/logged?secret=1", content=b"12345")
    request_id = answer.headers["x-request-id"]
    shared_proxy.err.wait_for(request_id)
    [line] = [line for line in shared_proxy.err.lines if request_id in line]
    pattern = rf"POST /v1/echo/logged 200 \d+ms in=5 out={len(answer.content)} {request_id}$"
    assert re.search(pattern, line), line


def test_pages_are_read_only(shared_proxy: Proxy) -> None:
    """Another method on a page is a 405 in the shape of our other errors."""
    answer = shared_proxy.http.post("/health")
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.anyio
async def test_page_that_fails() -> None:
    """A bug behind a page is answered in the shape of every other error, and goes on to be told."""

    async def ping() -> UpstreamPing:
        raise ArithmeticError

    pages = create_pages(
        status=lambda: WELL, news=News(Clock()), ping=ping, metrics=bytes, api_base="", key_set=False
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(pages, raise_app_exceptions=False), base_url="http://x"
    ) as client:
        answer = await client.get("/health?deep=1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")


def test_wrong_method(shared_proxy: Proxy) -> None:
    """A page that is asked in another way says which ways there are."""
    answer = shared_proxy.http.post("/health")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


OURS_ALONE = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/health", {}),
        ("HEAD", "/health?deep=1", {}),
        ("GET", "/metrics", {}),
        ("GET", "/nothing", {}),
        ("DELETE", "/health", {}),
        ("GET", "/v1/../health", {}),
        ("GET", "/health", {"Origin": "https://evil.example"}),
        ("GET", "/v1/models", {"Host": "evil.example"}),
        ("GET", "/v1/models", {"x-sim": "cut=head"}),
    ],
)
def test_answers_of_our_own(shared_proxy: Proxy, method: str, path: str, headers: dict[str, str]) -> None:
    """A page or an error of ours tells a browser not to show, frame, keep or guess at it."""
    request = httpx.Request(method, shared_proxy.url, headers=headers, extensions={"target": path.encode()})
    answer = shared_proxy.http.send(request)
    assert OURS_ALONE.items() <= dict(answer.headers).items()
    assert "server" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_what_is_not_http(shared_proxy: Proxy) -> None:
    """The refusal of what could not be read says the same."""
    with shared_proxy.dial() as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nHost : b\r\n\r\n")
        head = raw.recv(65536).decode().lower()
    assert all(f"\r\n{name}: {value}\r\n" in head for name, value in OURS_ALONE.items())


def test_answers_of_the_api(shared_proxy: Proxy) -> None:
    """What comes from the API gets none of these: it goes back as it was."""
    answer = shared_proxy.http.get("/v1/models")
    assert not OURS_ALONE.keys() & dict(answer.headers).keys()
