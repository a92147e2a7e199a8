"""Bytes on a socket: what no well-behaved client sends, and what old ones do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import parse_headers
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.clients.waiting import wait_for_counter
from tests.harness import PATIENCE, Proxy
from tests.sim.harness import Sim

STREAM = b'{"stream": true, "messages": [{"role": "user", "content": "good morning"}]}'
HEAD_LIMIT = 64 * 1024  # bytes


class Answer:
    """Status, headers and body of one answer as read from a connection; `length` None: to its end."""

    def __init__(self, incoming: Any) -> None:
        line: bytes = incoming.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        self.status = int(line.split()[1])
        self.headers = parse_headers(incoming)
        length = self.headers["content-length"]
        self.body: bytes = incoming.read() if length is None else incoming.read(int(length))

    def check_is_our_error(self, status: int, code: str) -> None:
        error = json.loads(self.body)["error"]
        assert (self.status, error["code"], error["type"]) == (status, code, "invalid_request_error")
        assert set(error) == {"message", "type", "code", "param"}
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]


class Wire:
    """A connection to the proxy."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._incoming = sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def answer(self) -> Answer:
        return Answer(self._incoming)

    def rest(self) -> bytes:
        """Everything up to the orderly end of the connection."""
        return self._incoming.read()

    def hang_up(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._incoming.close()


@pytest.fixture
def wire(shared_proxy: Proxy) -> Iterator[Wire]:
    parts = urlsplit(shared_proxy.url)
    with (
        socket.create_connection((parts.hostname, parts.port), PATIENCE) as sock,
        closing(Wire(sock)) as connection,
    ):
        yield connection


@pytest.mark.parametrize("stream", [True, False])
def test_http_1_0_without_host(wire: Wire, stream: bool) -> None:
    """The oldest client there is gets an answer without chunks that ends with the connection."""
    if stream:
        wire.send(
            b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(STREAM), STREAM)
        )
    else:
        wire.send(b"GET /v1/models HTTP/1.0\r\n\r\n")
    answer = wire.answer()
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    assert answer.body.endswith(b"data: [DONE]\n\n" if stream else b"}")
    assert wire.rest() == b""


def test_answer_before_the_upload_ends(wire: Wire) -> None:
    """A client that sends its whole upload before it reads finds the answer that came long before."""
    wire.send(b"POST /v1/files HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 50000000\r\n\r\n")
    for _ in range(50):
        wire.send(bytes(1_000_000))
    answer = wire.answer()
    answer.check_is_our_error(421, "host_not_allowed")
    assert answer.headers["connection"] == "close"
    assert wire.rest() == b""


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("pieces", [True, False], ids=["byte by byte", "at once"])
def test_body_of_a_request_that_wants_an_upgrade(wire: Wire, framing: bytes, pieces: bool) -> None:
    """A client that offers h2c, as Java's does, has its body sent on, and the connection goes on."""
    request = (
        b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n" + framing
    )
    for _ in range(2):
        for piece in (bytes([byte]) for byte in request) if pieces else (request,):
            wire.send(piece)
        answer = wire.answer()
        assert (answer.status, json.loads(answer.body)["body_length"]) == (200, 5)


@pytest.mark.parametrize(
    "behind",
    [
        b"\x16\x03\x01",
        b"POST /v1/echo HTTP/1.1\r\nbroken\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ],
    ids=["tls", "header", "body", "connect"],
)
def test_rubbish_behind_a_request(wire: Wire, behind: bytes) -> None:
    """What follows a whole request cannot take its answer away; the connection ends behind that."""
    wire.send(b"GET /v1/echo/first HTTP/1.1\r\nHost: 127.0.0.1\r\nx-sim: delay=0.2\r\n\r\n" + behind)
    answer = wire.answer()
    assert (answer.status, json.loads(answer.body)["target"]) == (200, "/v1/echo/first")
    assert wire.rest() == b""


def test_rubbish_in_a_body(wire: Wire, shared_sim: Sim) -> None:
    """A body that breaks its framing is answered with 400, and its request to the API is dropped."""
    aborted = shared_sim.counters()["aborted_requests"]
    begin_upload(wire, shared_sim)
    wire.send(b"zz\r\n")
    wire.answer().check_is_our_error(400, "bad_request")
    wait_for_counter(shared_sim, "aborted_requests", at_least=aborted + 1)


def test_many_upgrades_at_once(wire: Wire) -> None:
    """Requests that offer an upgrade are answered one by one, however many come together."""
    request = b"GET /v1/echo HTTP/1.1\r\nHost: a.localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    wire.send(request * 600)
    assert [wire.answer().status for _ in range(600)] == [200] * 600


def test_pipelining(wire: Wire) -> None:
    """Two requests sent at once get two answers in their order, though the first takes longer."""
    wire.send(
        b"GET /v1/echo/first HTTP/1.1\r\nHost: 127.0.0.1\r\nx-sim: delay=0.3\r\n\r\n"
        b"GET /v1/echo/second HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    )
    targets = [json.loads(wire.answer().body)["target"] for _ in range(2)]
    assert targets == ["/v1/echo/first", "/v1/echo/second"]
    assert wire.rest() == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"complete nonsense\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost 127.0.0.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX y: z\r\n\r\n",
        b"GET /v1/models x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: +1\r\n\r\nx",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
        b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /v1/echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        + b"Transfer-Encoding: chunked\r\n" * 2
        + b"\r\n0\r\n\r\n",
    ],
    ids=[
        "nonsense",
        "no-colon",
        "no-host",
        "two-hosts",
        "blank-in-name",
        "four-words",
        "two-lengths",
        "negative-length",
        "signed-length",
        "tls",
        "connect",
        "chunked-1.0",
        "chunked-twice",
    ],
)
def test_malformed_request(wire: Wire, shared_sim: Sim, request_bytes: bytes) -> None:
    """What is not HTTP gets an error like our others, the connection ends, and nothing is sent on."""
    before = shared_sim.counters()["api_requests"]
    wire.send(request_bytes)
    answer = wire.answer()
    answer.check_is_our_error(400, "bad_request")
    assert answer.headers["connection"] == "close"
    assert wire.rest() == b""
    assert shared_sim.counters()["api_requests"] == before


def test_oversized_head(wire: Wire, shared_sim: Sim) -> None:
    """Headers that go on beyond 64 KB are refused with 431 before they end, and nothing is sent on."""
    before = shared_sim.counters()["api_requests"]
    head = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Large: "
    wire.send(head.ljust(HEAD_LIMIT, b"x"))
    # The byte too many comes alone: with more to be read the connection would end by a reset.
    wire.send(b"x")
    answer = wire.answer()
    answer.check_is_our_error(431, "bad_request")
    assert answer.headers["connection"] == "close"
    assert wire.rest() == b""
    assert shared_sim.counters()["api_requests"] == before


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        pytest.param(b"/v1/models", b"X-Large: %b\r\n" % (b"x" * HEAD_LIMIT), id="long-header"),
        pytest.param(b"/v1/models?" + b"x" * HEAD_LIMIT, b"", id="long-target"),
        pytest.param(b"/v1/models", b"x: y\r\n" * (HEAD_LIMIT // 6), id="many-headers"),
        pytest.param(b"/v1/models", b"X-Huge: %b\r\n" % (b"x" * 5_000_000), id="huge-header"),
    ],
)
def test_oversized_head_at_once(wire: Wire, target: bytes, headers: bytes) -> None:
    """A head that is complete but too large is refused with 431 as well."""
    wire.send(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n" % (target, headers))
    wire.answer().check_is_our_error(431, "bad_request")


def begin_upload(wire: Wire, sim: Sim, *headers: bytes) -> None:
    """Send the head and one chunk of an upload and wait until the API has its head."""
    head = b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
    wire.send(head + b"".join(header + b"\r\n" for header in headers) + b"\r\n5\r\nhello\r\n")
    wait_for_counter(sim, "open_requests", at_least=1)


@pytest.mark.parametrize("byte", [b"\t", b"\x7f", b"\xc3\xbc"])
@pytest.mark.parametrize("target", [b"/v1/%b", b"/v1/models?%b"])
def test_target_that_needs_encoding(wire: Wire, target: bytes, byte: bytes) -> None:
    """A byte that no target may hold (RFC 9112 §3.2) is refused with the reason."""
    wire.send(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % (target % byte))
    answer = wire.answer()
    answer.check_is_our_error(400, "bad_request")
    assert b"must be percent-encoded" in answer.body


@pytest.mark.parametrize("chunk", [b"ZZ\r\n", b"5\r\nhello!!", b"-1\r\n", b"5hello"])
def test_malformed_chunk(wire: Wire, shared_sim: Sim, chunk: bytes) -> None:
    """A body that turns out malformed is refused, and never looks complete to the API."""
    aborted = shared_sim.counters()["aborted_requests"]
    begin_upload(wire, shared_sim)
    wire.send(chunk + b"\r\n0\r\n\r\n")
    answer = wire.answer()
    answer.check_is_our_error(400, "bad_request")
    assert wire.rest() == b""
    wait_for_counter(shared_sim, "aborted_requests", at_least=aborted + 1)
    record = shared_sim.requests()[-1]
    assert (record["status"], record["body_sha256"]) == (None, None)


def test_upload_that_breaks_off(wire: Wire, shared_sim: Sim) -> None:
    """A client that leaves in its upload leaves an incomplete body at the API, not a short one."""
    aborted = shared_sim.counters()["aborted_requests"]
    begin_upload(wire, shared_sim)
    wire.hang_up()
    wait_for_counter(shared_sim, "aborted_requests", at_least=aborted + 1)
    assert shared_sim.requests()[-1]["body_sha256"] is None


def test_length_and_chunks(wire: Wire, shared_sim: Sim) -> None:
    """Two contradicting framings are refused, so that no request can hide in a body."""
    before = shared_sim.counters()["api_requests"]
    wire.send(
        b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    wire.answer().check_is_our_error(400, "bad_request")
    assert shared_sim.counters()["api_requests"] == before


@pytest.mark.parametrize(
    "target",
    [
        b"http://127.0.0.1/v1/models",
        b"http://api.x.ai/v1/models",
        b"https://127.0.0.1/v1/models",
        b"//127.0.0.1/v1/models",
        b"127.0.0.1:443",
        b"*",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"CONNECT", b"OPTIONS"])
def test_targets_of_other_forms(wire: Wire, shared_sim: Sim, method: bytes, target: bytes) -> None:
    """This is no forward proxy: whatever is not a path is refused and never sent on."""
    before = shared_sim.counters()["api_requests"]
    wire.send(method + b" " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    answer = wire.answer()
    assert 400 <= answer.status < 500
    assert shared_sim.counters()["api_requests"] == before
