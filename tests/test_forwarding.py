"""What goes in and what comes back: byte for byte, without the client's credentials, as it comes."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from tests.harness import PATIENCE, Home, Proxy, before_bare_api, provider_store, proxy_running
from tests.sim.harness import Sim, client


def echo(proxy: Proxy, path: str = "/v1/echo", **request: object) -> dict[str, object]:
    """What the API saw of a request."""
    method = str(request.pop("method", "GET"))
    answer = proxy.http.request(method, path, **request)  # type: ignore[arg-type]  # as httpx takes them
    assert answer.status_code == 200, answer.text
    seen: dict[str, object] = answer.json()
    return seen


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"])
def test_any_method(shared_proxy: Proxy, method: str) -> None:
    """Every method reaches the API, known to us or not."""
    assert echo(shared_proxy, method=method)["method"] == method


@pytest.mark.parametrize(
    "path",
    [
        "/v1/echo/a%2Fb%20c",
        "/v1/echo/batches/abc:cancel",
        "/v1/echo/%E4%BD%A0%e5%a5%bd",
        "/v1/echo//double//slash/",
        "/v1/echo/semi;colon=1,2",
        "/v1/echo?x=%41&y=a+b&y=&z",
        "/v1/echo?url=https://a.b/c?d=e#not",
        "/v1/echo/%3Fnot-a-query?is=%23",
        "/v1/echo/./a/../b/%2e%2E/c",
    ],
)
def test_target_is_byte_identical(shared_proxy: Proxy, path: str) -> None:
    """Path, percent-encoding and query arrive as they were sent."""
    target = path.split("#")[0].encode()
    request = httpx.Request("GET", shared_proxy.url, extensions={"target": target})
    assert shared_proxy.http.send(request).json()["target"].encode() == target


def test_client_credentials_are_replaced(shared_proxy: Proxy) -> None:
    """No credential and no forwarding header of the client goes out; our bearer does, once, at the end."""
    names = [
        "Authorization",
        "AUTHORIZATION",
        "Proxy-Authorization",
        "X-Api-Key",
        "x-proxy-api-key",
        "Cookie",
        "Forwarded",
        "X-Forwarded-For",
        "x-FORWARDED-anything",
        "X-Real-IP",
        "Via",
        "Connection",
        "X-Named",
        "Keep-Alive",
        "TE",
        "Proxy-Connection",
    ]
    headers = [(name, "x-named" if name == "Connection" else "Bearer secret") for name in names]
    kept = [("X-Grok-Conv-Id", "c1"), ("Idempotency-Key", "i1"), ("X-Double", "1"), ("X-Double", "2")]
    seen = echo(shared_proxy, headers=headers + kept)["headers"]
    assert isinstance(seen, list)
    assert [value for name, value in seen if name.lower() == "authorization"] == ["bearer:known"]
    assert seen[-1][0].lower() == "authorization"
    dropped = {name.lower() for name in names} - {"authorization"}
    assert not dropped & {name.lower() for name, _ in seen}
    for name, value in kept:
        assert [name.lower(), value] in [[seen_name.lower(), seen_value] for seen_name, seen_value in seen]
    assert not any(name.lower().startswith("x-forwarded") for name, _ in seen)


def test_nothing_is_added(shared_proxy: Proxy) -> None:
    """A bare request gets a host and the bearer, and no trace of who forwards it."""
    request = httpx.Request("GET", shared_proxy.url + "/v1/echo", headers={"host": "localhost"})
    seen = {name.lower() for name, _ in shared_proxy.http.send(request).json()["headers"]}
    assert seen == {"host", "authorization"}


def test_response_headers(shared_proxy: Proxy) -> None:
    """Rate limits and the request id come back; alt-svc, cookies and hop-by-hop headers do not."""
    answer = shared_proxy.http.post(
        "/v1/chat/completions", json={"model": "grok-4", "messages": [{"role": "user", "content": "x"}]}
    )
    assert answer.headers["x-ratelimit-remaining-requests"]
    assert answer.headers["x-request-id"]
    assert answer.headers["x-metrics-e2e-ms"]
    assert not {"alt-svc", "set-cookie", "server"} & set(answer.headers)


def test_content_encoding_is_kept(shared_proxy: Proxy) -> None:
    """A compressed answer comes back compressed as it was."""
    with shared_proxy.http.stream("GET", "/v1/models", headers={"x-sim": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert raw.startswith(b"\x1f\x8b")


def test_large_upload_is_streamed_whole(shared_proxy: Proxy) -> None:
    """20 MiB, more than is kept for a resend, arrive whole."""
    chunk = bytes(range(256)) * 4096
    seen = echo(shared_proxy, method="POST", content=iter([chunk] * 20))
    assert seen["body_length"] == 20 * len(chunk)
    assert seen["body_sha256"] == hashlib.sha256(chunk * 20).hexdigest()


def test_bytes_that_few_servers_know(own_sim: Sim, home: Home) -> None:
    """A target goes on as it is, however odd, and what comes back includes the trailers of the answer."""
    target = b'/v1/files/|"{}^`\\[]<>?q=|"{}^`\\[]<>'
    answer = (
        b"HTTP/1.1 207 Odd\r\nTransfer-Encoding: chunked\r\nx-request-id: r1\r\n\r\n"
        b"2\r\nhi\r\n0\r\nx-metrics: 7\r\nset-cookie: a=b\r\n\r\n"
    )
    with before_bare_api(home, own_sim) as (listener, proxy), proxy.dial() as asking:
        asking.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
        api, _ = listener.accept()
        with api, api.makefile("rb") as incoming:
            assert incoming.readline() == b"GET %b HTTP/1.1\r\n" % target
            api.sendall(answer)
            with asking.makefile("rb") as back:
                received = back.read()
    assert received == (
        b"HTTP/1.1 207 Multi-Status\r\nx-request-id: r1\r\ntransfer-encoding: chunked\r\n"
        b"connection: close\r\n\r\n2\r\nhi\r\n0\r\nx-metrics: 7\r\n\r\n"
    )


def test_trailers_of_a_request_are_nobodys(shared_proxy: Proxy) -> None:
    """What stands behind a chunked body is neither this request's nor the next one's header."""
    with shared_proxy.dial() as client, client.makefile("rb") as back:
        client.sendall(
            b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nhi\r\n0\r\nx-smuggled: 1\r\n\r\n"
            b"GET /v1/echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        received = back.read()
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert b"x-smuggled" not in received


def test_binary_answer(shared_proxy: Proxy) -> None:
    """An uploaded file comes back with the very same bytes."""
    content = bytes(range(256)) * 1000
    file = shared_proxy.http.post(
        "/v1/files", files={"file": ("f.bin", content)}, data={"purpose": "x"}
    ).json()
    assert shared_proxy.http.get(f"/v1/files/{file['id']}/content").content == content


def test_stream_arrives_while_it_lasts(shared_proxy: Proxy) -> None:
    """An event is with the client while the API still holds the stream open."""
    question = {"model": "grok-4", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with shared_proxy.http.stream(
        "POST", "/v1/chat/completions", json=question, headers={"x-sim": "hang"}
    ) as answer:
        assert next(answer.iter_lines()).startswith("data:")


@pytest.mark.parametrize("when", ["while waiting for the head", "in the middle of a stream"])
def test_client_that_leaves_cancels_upstream(own_sim: Sim, home: Home, when: str) -> None:
    """When the client goes away, its request to the API is dropped at once."""
    home.write_store(provider_store(own_sim.login()))
    directive = "delay=30" if "head" in when else "hang"
    with proxy_running(home, own_sim) as proxy:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nx-sim: {directive}\r\n"
            'Content-Length: 64\r\n\r\n{"model":"g","stream":true,"messages":[{"role":"user","content":"'
        )
        body = '{"model":"g","stream":true,"messages":[]}'.ljust(64)
        with proxy.dial() as leaving:
            leaving.sendall(head.split("\r\n\r\n")[0].encode() + b"\r\n\r\n" + body.encode())
            if directive == "hang":
                assert leaving.recv(10)
            else:
                own_sim.http.get("/_sim/wait?counter=open_requests&n=1&timeout=10").raise_for_status()
        own_sim.http.get("/_sim/wait-aborted?n=1&timeout=10").raise_for_status()
        assert own_sim.counters()["aborted_requests"] == 1
        proxy.err.wait_for("client_gone")
        assert proxy.metric("proxy_requests_in_flight") == 1  # this very scrape


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 401 No\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 503 Later\r\nRetry-After: 20\r\nContent-Length: 100\r\n\r\nhalf",
    ],
    ids=["while a refusal is looked at", "while a retry is waited for"],
)
def test_client_that_leaves_a_refusal(own_sim: Sim, home: Home, begun: bytes) -> None:
    """A client that goes before it has an answer takes the connection to the API with it."""
    with before_bare_api(home, own_sim) as (listener, proxy):
        with proxy.dial() as leaving:
            leaving.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            api, _ = listener.accept()
            api.settimeout(PATIENCE)
            assert api.recv(65536)
            api.sendall(begun)
            proxy.http.get("/health").raise_for_status()  # by then the proxy has read it
        with api, suppress(ConnectionResetError):
            assert api.recv(1) == b""


def test_client_that_leaves_a_stalled_upload(own_sim: Sim, home: Home) -> None:
    """When the API has stopped reading an upload, the client's going is seen all the same."""
    with before_bare_api(home, own_sim) as (api, proxy):
        with proxy.dial() as leaving:
            leaving.sendall(
                b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n"
            )
            deaf, _ = api.accept()
            leaving.settimeout(0.5)
            with pytest.raises(TimeoutError):
                leaving.sendall(bytes(100_000_000))
            # As the system does for a process that is killed with unread data.
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with deaf:
            proxy.err.wait_for("client_gone")
            assert proxy.metric("proxy_requests_in_flight") == 1  # this very scrape


@pytest.mark.parametrize("cut", ["body", "length"])
def test_truncation_is_visible(shared_proxy: Proxy, cut: str) -> None:
    """An answer the API cuts short is cut short for the client, not ended cleanly."""
    with pytest.raises(httpx.RemoteProtocolError):
        shared_proxy.http.post(
            "/v1/chat/completions",
            json={"model": "g", "stream": cut == "body", "messages": [{"role": "user", "content": "x"}]},
            headers={"x-sim": f"cut={cut}"},
        )


def test_broken_off_before_the_head(shared_proxy: Proxy) -> None:
    """An API that closes without an answer becomes a 502 with the next step, and the POST is not repeated."""
    headers = {"x-sim": "cut=head"}
    answer = shared_proxy.http.post("/v1/echo", headers=headers, content=b"x")
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_broken_off"


def test_warm_connections(home: Home, own_sim: Sim) -> None:
    """UPSTREAM_WARM_CONNECTIONS connections are opened at the start, and a question takes one of them."""
    with before_bare_api(home, own_sim, warm=1) as (api, proxy):
        warm, _ = api.accept()
        warm.settimeout(PATIENCE)
        with warm, ThreadPoolExecutor() as pool:
            for _ in range(10):
                # Each takes turns of the proxy's loop; after a few it has seen its own connection, too.
                proxy.http.get("/health")
            asked = pool.submit(proxy.http.get, "/v1/models")
            assert warm.recv(100).startswith(b"GET /v1/models HTTP/1.1\r\n")
            warm.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            assert asked.result().text == "hi"


def test_unreachable(home: Home, own_sim: Sim) -> None:
    """With nobody listening upstream the client gets a 502 that names the cause, once retries are used up."""
    home.write_store(provider_store(own_sim.login()))
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    with proxy_running(home, own_sim, XAI_BASE_URL=f"http://127.0.0.1:{port}/v1") as proxy:
        answer = proxy.http.post("/v1/chat/completions", json={})
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "upstream_unreachable"
        assert proxy.metric('proxy_upstream_errors_total{kind="unreachable"}') == 3


def test_read_timeout(home: Home, own_sim: Sim) -> None:
    """An API that stays silent longer than UPSTREAM_READ_TIMEOUT becomes a 504, without another try."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, UPSTREAM_READ_TIMEOUT="0.3") as proxy:
        answer = proxy.http.get("/v1/models", headers={"x-sim": "delay=20"})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "upstream_timeout"
        assert proxy.metric('proxy_upstream_errors_total{kind="timeout"}') == 1


@pytest.mark.parametrize("status", [429, 502, 503])
def test_idempotent_request_is_retried(shared_proxy: Proxy, status: int) -> None:
    """A GET that meets a temporary refusal is repeated until it is answered."""
    sim = {"x-sim": f"status={status};times=2;key=retry-{status}"}
    assert shared_proxy.http.get("/v1/models", headers=sim).status_code == 200


def test_post_is_not_retried(shared_proxy: Proxy) -> None:
    """A POST is never repeated after the API has answered."""
    sim = {"x-sim": "status=503;times=1;key=post"}
    assert shared_proxy.http.post("/v1/echo", headers=sim).status_code == 503
    assert shared_proxy.http.post("/v1/echo", headers=sim).status_code == 200


def test_retries_are_bounded(shared_proxy: Proxy, shared_sim: Sim) -> None:
    """After UPSTREAM_RETRY_ATTEMPTS the refusal itself is delivered."""
    before = shared_sim.counters()["api_requests"]
    answer = shared_proxy.http.get("/v1/models", headers={"x-sim": "status=502"})
    assert answer.status_code == 502
    assert shared_sim.counters()["api_requests"] == before + 3


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("entitlement", 403),
        ("spending-limit", 403),
        ("permission-denied", 403),
        ("content", 403),
        ("quota-402", 402),
        ("quota-429", 429),
        ("rate-429", 429),
    ],
)
def test_rejection_passes_through(shared_proxy: Proxy, shared_sim: Sim, kind: str, status: int) -> None:
    """A refusal that is not about the token comes back byte for byte and costs no refresh."""
    before = shared_sim.counters()
    sent = {"x-sim": f"reject={kind}"}
    with client(shared_sim.url) as direct:
        expected = direct.post("/v1/echo", headers=sent | shared_sim.bearer())
    answer = shared_proxy.http.post("/v1/echo", headers=sent)
    assert (answer.status_code, answer.content) == (status, expected.content)
    assert shared_sim.counters()["token_requests"] == before["token_requests"]


def test_doubled_and_forgotten_prefix(shared_proxy: Proxy) -> None:
    """A forgotten or doubled /v1 is a 404 that says which base URL to use."""
    for path, hint in (("/chat/completions", "must end in /v1"), ("/v1/v1/models", "/v1 twice")):
        answer = shared_proxy.http.post(path, json={})
        assert answer.status_code == 404
        assert hint in answer.json()["error"]["message"]
        assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "path", ["/v1/../oauth2/token", "/v1/%2e%2E/x", "/v1/a/../../x", "/v1/..%2fx", "/v1/..%5cx"]
)
def test_climbing_paths_are_refused(shared_proxy: Proxy, path: str) -> None:
    """No path leads the bearer out of /v1."""
    request = httpx.Request("GET", shared_proxy.url, extensions={"target": path.encode()})
    answer = shared_proxy.http.send(request)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "bad_path"


def test_other_upgrades_are_ignored(shared_proxy: Proxy) -> None:
    """An offer to speak HTTP/2 is passed over and the request answered (RFC 9110 §7.8)."""
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABk"}
    assert shared_proxy.http.get("/v1/models", headers=offer).status_code == 200


def test_many_at_once(shared_proxy: Proxy) -> None:
    """Forty streams at once all end whole."""
    ends: list[str] = []

    def read_stream() -> None:
        question = {"model": "grok-4", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        with client(shared_proxy.url, timeout=PATIENCE) as http:
            ends.append(http.post("/v1/chat/completions", json=question).text.rstrip()[-12:])

    threads = [threading.Thread(target=read_stream) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == ["data: [DONE]"] * 40
