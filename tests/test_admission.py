"""Overload is refused and not suffered: how many requests and streams are answered at once."""

from __future__ import annotations

import functools
import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.harness import PATIENCE, Home, Json, Proxy, provider_store, proxy_running
from tests.sim.harness import Sim, client
from tests.slow import asked, in_flight, question

REQUESTS, STREAMS = 4, 1
HASTE = 0.7
"""Seconds of `PROXY_BODY_TIMEOUT`."""
QUESTION: Json = {"model": "grok-4", "messages": [{"role": "user", "content": "x"}]}
STREAMED: Json = QUESTION | {"stream": True}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def narrow(shared_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that answers four requests at once, and one stream among them."""
    home = Home(tmp_path_factory.mktemp("narrow"))
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(home, shared_sim, PROXY_MAX_REQUESTS=REQUESTS, PROXY_MAX_STREAMS=STREAMS) as proxy:
        yield proxy


def arrived(sim: Sim) -> tuple[int, int]:
    """How many requests and WebSockets have come to the API."""
    counters = sim.counters()
    return counters["api_requests"], counters["websockets"]


@contextmanager
def held(proxy: Proxy, wanted: Json = QUESTION) -> Iterator[httpx.Response]:
    """An answer that has begun and does not end before the block does."""
    with (
        client(proxy.url, timeout=PATIENCE) as http,
        http.stream("POST", "/v1/chat/completions", json=wanted, headers={"x-sim": "hang"}) as answer,
    ):
        yield answer


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def settled(proxy: Proxy) -> None:
    """Nothing is open any more: a client's going takes a moment to be heard of."""
    until(lambda: not in_flight(proxy) and not proxy.metric("proxy_streams_open"))


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    return answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]


FULL = (503, "overloaded", "1")


def test_requests(narrow: Proxy, shared_sim: Sim) -> None:
    """One request too many is refused before anything is sent; our own pages are not, and it passes."""
    settled(narrow)
    refused = narrow.metric('proxy_refused_total{reason="requests"}')
    with ExitStack() as stack:
        for _ in range(REQUESTS):
            stack.enter_context(held(narrow))
        before = arrived(shared_sim)
        assert refusal(narrow.http.post("/v1/chat/completions", json=QUESTION)) == FULL
        assert refusal(narrow.http.get("/v1/models")) == FULL
        with pytest.raises(InvalidStatus, match="503"):
            connect(narrow.url.replace("http", "ws", 1) + "/v1/realtime", proxy=None)
        assert arrived(shared_sim) == before
        assert narrow.http.get("/health").status_code == 200
        assert narrow.metric('proxy_refused_total{reason="requests"}') == refused + 3
    settled(narrow)
    assert narrow.http.get("/v1/models").status_code == 200


def in_two(proxy: Proxy) -> Iterator[bytes]:
    """A body whose end comes when the proxy is at work on the request, beside another one."""
    text = json.dumps(STREAMED).encode()
    yield text[:10]
    until(lambda: in_flight(proxy) == 2)
    yield text[10:]


def body_later(proxy: Proxy) -> httpx.Response:
    length = {"content-length": str(len(json.dumps(STREAMED)))}
    with client(proxy.url, timeout=PATIENCE) as http:
        return http.post("/v1/chat/completions", content=in_two(proxy), headers=JSON | length)


STREAM_REQUESTS: dict[str, Callable[[Proxy], httpx.Response]] = {
    "body": lambda proxy: proxy.http.post("/v1/chat/completions", json=STREAMED),
    "body-later": body_later,
    "accept": lambda proxy: proxy.http.get(
        "/v1/x", headers={"accept": "application/json, Text/Event-Stream"}
    ),
}


def test_streams(narrow: Proxy, shared_sim: Sim) -> None:
    """However a stream is asked for, one too many is refused; what is none is answered meanwhile."""
    settled(narrow)
    with held(narrow, STREAMED) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        before = arrived(shared_sim)
        for name, ask in STREAM_REQUESTS.items():
            assert refusal(ask(narrow)) == FULL, name
        with pytest.raises(InvalidStatus, match="503"):
            connect(narrow.url.replace("http", "ws", 1) + "/v1/realtime", proxy=None)
        assert arrived(shared_sim) == before
        assert narrow.http.post("/v1/chat/completions", json=QUESTION).status_code == 200
        assert narrow.metric("proxy_streams_open") == 1
    settled(narrow)


def test_a_stream_nobody_could_know_of(narrow: Proxy) -> None:
    """A body in chunks is not waited for: its stream counts once it begins, and is not cut."""
    settled(narrow)
    with held(narrow, STREAMED), client(narrow.url, timeout=PATIENCE) as http:
        in_chunks = functools.partial(http.stream, "POST", "/v1/chat/completions")
        with in_chunks(content=in_two(narrow), headers=JSON | {"x-sim": "hang"}) as answer:
            assert answer.status_code == 200
            assert narrow.metric("proxy_streams_open") == 2
        until(lambda: in_flight(narrow) == 1)
        with in_chunks(content=in_two(narrow), headers=JSON) as answer:
            assert "data: [DONE]" in list(answer.iter_lines())
    settled(narrow)


def test_slots_come_back(narrow: Proxy) -> None:
    """Whole, cut, refused by the API, malformed, closed, left: after every ending there is room again."""
    settled(narrow)
    with client(narrow.url, timeout=PATIENCE) as http:
        for directive in ("", "cut=body", "cut=head", "reject=quota-429", "status=500"):
            try:
                http.post("/v1/chat/completions", json=STREAMED, headers={"x-sim": directive})
            except httpx.RemoteProtocolError:
                assert directive == "cut=body"
        assert http.post("/v1/v1/models", json=STREAMED).status_code == 404
        malformed = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "8"}
        assert http.get("/v1/realtime", headers=malformed).status_code == 426
    with connect(narrow.url.replace("http", "ws", 1) + "/v1/realtime", proxy=None) as talk:
        talk.recv(PATIENCE)
        assert narrow.metric("proxy_streams_open") == 1
    with narrow.dial() as sock:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sock.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
        until(lambda: in_flight(narrow) == 1)
    settled(narrow)
    with ExitStack() as stack:
        for wanted in [STREAMED] * STREAMS + [QUESTION] * (REQUESTS - STREAMS):
            assert stack.enter_context(held(narrow, wanted)).status_code == 200
        assert refusal(narrow.http.get("/v1/models")) == FULL
    settled(narrow)


def test_unlimited(home: Home, own_sim: Sim) -> None:
    """With 0 there is no limit, and streams are counted all the same."""
    home.write_store(provider_store(own_sim.login()))
    with (
        proxy_running(home, own_sim, PROXY_MAX_REQUESTS=0, PROXY_MAX_STREAMS=0) as proxy,
        ExitStack() as stack,
    ):
        for _ in range(3):
            assert stack.enter_context(held(proxy, STREAMED)).status_code == 200
        with connect(proxy.url.replace("http", "ws", 1) + "/v1/realtime", proxy=None) as talk:
            talk.recv(PATIENCE)
            assert proxy.metric("proxy_streams_open") == 4


def echoed_at_length() -> bytes:
    """A WebSocket, and frames of 200 KB, 80 MB in all, that the API sends back."""
    head = "GET /v1/realtime HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    key = "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    size = 200_000
    frame = b"\x82\xff" + size.to_bytes(8) + bytes(4) + bytes(size)
    return (head + key).encode() + 400 * frame


@pytest.fixture(scope="module")
def hasty(shared_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy for two requests, of which one is a stream, where it is soon too long to wait for a client."""
    home = Home(tmp_path_factory.mktemp("hasty"))
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(
        home, shared_sim, PROXY_MAX_REQUESTS=2, PROXY_MAX_STREAMS=1, PROXY_BODY_TIMEOUT=HASTE
    ) as proxy:
        yield proxy


def until_let_in(ask: Callable[[], httpx.Response]) -> None:
    """Ask until that is not refused."""
    deadline = time.monotonic() + PATIENCE
    while (answer := ask()).status_code != 200:
        assert refusal(answer) == FULL
        assert time.monotonic() < deadline


def test_slow_bodies_make_room(narrow: Proxy) -> None:
    """Who sends a body a byte now and then is told to try again once others need the slot; nobody else is."""
    settled(narrow)
    head = b"POST /v1/echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"
    with ExitStack() as stack:
        slow, other = (stack.enter_context(narrow.dial()) for _ in range(2))
        slow.sendall(head)
        until(lambda: in_flight(narrow) == 1)
        other.sendall(head)
        for _ in range(REQUESTS - 2):
            stack.enter_context(held(narrow))
        until(lambda: in_flight(narrow) == REQUESTS)
        until_let_in(lambda: narrow.http.get("/v1/models"))
        answer = http.client.HTTPResponse(slow)
        answer.begin()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert json.loads(answer.read())["error"]["code"] == "overloaded"
        other.sendall(b"0\r\n\r\n")
        answer = http.client.HTTPResponse(other)
        answer.begin()
        assert answer.status == 200
    settled(narrow)


@pytest.mark.parametrize(
    "request_", [question(200_000, stream=True), echoed_at_length()], ids=["stream", "websocket"]
)
def test_answers_that_nobody_takes_make_room(hasty: Proxy, request_: bytes) -> None:
    """A stream or WebSocket whose client takes nothing is cut once another needs its slot, and not before."""
    settled(hasty)
    with asked(hasty, request_) as sock:
        until(lambda: hasty.metric("proxy_streams_open") == 1)
        until_let_in(lambda: hasty.http.post("/v1/chat/completions", json=STREAMED))
        text = b""
        with suppress(ConnectionResetError):
            while piece := sock.recv(1 << 20):
                text += piece
        assert text.startswith((b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 101 "))
        assert not text.endswith(b"0\r\n\r\n")
    settled(hasty)
