"""Requests, well formed and mutilated, through our server and our upstream; h11 is the oracle on both sides.

Whatever is sent, the API must see nothing that another parser would not have seen in the client's bytes: no
request more, none with another body, and nothing behind a request that was refused.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import h11
import pytest
import uvicorn
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from grok_oauth_proxy.asgi import Receive, Scope, Send
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.client_keys import KeysFile
from grok_oauth_proxy.credentials.token import Token
from grok_oauth_proxy.egress import tls_context
from grok_oauth_proxy.events import Event
from grok_oauth_proxy.http1.connection import Connection
from grok_oauth_proxy.http1.crowd import Bounds, Crowd
from grok_oauth_proxy.proxy import retry
from grok_oauth_proxy.proxy.admission import Admission, Limits
from grok_oauth_proxy.proxy.body import Keep
from grok_oauth_proxy.proxy.fallback import KeyFallback
from grok_oauth_proxy.proxy.front_door import FrontDoor
from grok_oauth_proxy.proxy.handler import Proxy
from grok_oauth_proxy.proxy.key_ring import KeyRing
from grok_oauth_proxy.proxy.recovery import Recovery
from grok_oauth_proxy.proxy.replies import send_error
from grok_oauth_proxy.proxy.target import outside_api
from grok_oauth_proxy.proxy.upstream import Upstream
from grok_oauth_proxy.web.gateway import Gateway

EXAMPLES = 500
LAST = b"GET /v1/last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

Seen = tuple[bytes, bytes, bytes]
"""Method, target and body of a request."""


def hear(_event: Event) -> None:
    """Nobody listens."""


class Tokens:
    async def get(self, *, refused: Token | None = None, at_least: float = 0.0) -> Token:  # noqa: ARG002
        return Token(SecretStr("bearer"), 0.0, None)

    def note_accepted(self) -> None:
        pass

    def note_refused(self, token: Token, *, everywhere: bool = False) -> None:
        """None is refused here."""


def requests_in(data: bytes) -> list[Seen]:
    """What h11 makes of the bytes of a client, up to the first it does not accept."""
    found: list[Seen] = []
    with suppress(h11.RemoteProtocolError):
        while (read := one_request(data)) is not None:
            request, data = read
            found.append(request)
    return found


def one_request(data: bytes) -> tuple[Seen, bytes] | None:
    """The first request in `data`, and what follows it; whether the connection would go on does not count."""
    connection, body = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), b""
    connection.receive_data(data)
    head = connection.next_event()
    if not isinstance(head, h11.Request):
        return None
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    if not isinstance(event, h11.EndOfMessage):
        return None
    return (head.method, head.target, body), connection.trailing_data[0]


async def nothing_here(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send_error(send, outside_api("/"), "req_1")


class Stage:
    """Client, our server, our upstream, and an API that keeps the bytes it was sent on each connection."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.received: list[bytearray] = []

    async def open(self) -> None:
        self.api = await asyncio.start_server(self._keep, "127.0.0.1", 0)
        port = self.api.sockets[0].getsockname()[1]
        self.upstream = Upstream(
            f"http://127.0.0.1:{port}/v1",
            proxy=None,
            tls=tls_context(),
            connect_timeout=5,
            read_timeout=5,
            clock=Clock(),
        )
        api = Proxy(
            Admission(Limits(0, 0), hear, Clock()),
            Recovery(Tokens(), KeyFallback(None, hear), hear, Clock(), replay_limit=1 << 20),
            self.upstream,
            policy=retry.Policy(0, 0.0),
            keep=Keep(1 << 20),
            observer=hear,
            clock=Clock(),
        )
        ring = KeyRing(KeysFile(Path("/nowhere/keys.json")), hear, Clock().monotonic)
        door = FrontDoor(
            api_key=None, ring=ring, allowed_hosts=("a",), allowed_origins=(), bound_host="127.0.0.1"
        )
        app = Gateway(door, api, nothing_here, observer=lambda _event: None, clock=Clock())
        config = uvicorn.Config(app, interface="asgi3", lifespan="off", proxy_headers=False, log_config=None)
        config.load()
        make = partial(
            Connection, lambda _event: None, Crowd(Bounds()), None, config, uvicorn.server.ServerState(), {}
        )
        self.server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        await self.upstream.aclose()
        self.server.close()
        self.api.close()

    async def _keep(self, reader: StreamReader, writer: StreamWriter) -> None:
        received = bytearray()
        self.received.append(received)
        answered = 0
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                received += data
                while answered < len(requests_in(bytes(received))):
                    answered += 1
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def ask(self, pieces: list[bytes]) -> tuple[bytes, list[Seen]]:
        """What comes back to the client, and what the API saw."""
        self.received.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            back = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        for connection in list(self.upstream._idle):  # noqa: SLF001 - each example has connections of its own
            connection.close()
        seen = [request for received in self.received for request in requests_in(bytes(received))]
        return back, seen


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    with stage.runner:
        stage.runner.run(stage.open())
        yield stage
        stage.runner.run(stage.close())


METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"PURGE", b"M-SEARCH"])
TARGETS = st.sampled_from([b"/v1/a", b"/v1/a?b=c", b"/v1/%41", b"/v1/x:y", b"/v1//", b"/v1/a/../b"])
FIELDS = st.sampled_from(
    [
        b"X: y",
        b"X: ",
        b"X:y",
        b"Accept: */*",
        b"Connection: keep-alive",
        b"Connection: X, close",
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"Connection: Upgrade",
        b"Content-Length: 5",
        b"Content-Length: 0",
        b"Content-Length: 5, 5",
        b"content-length: 05",
        b"Content-Length: +5",
        b"Content-Length : 5",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: Chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding:\x0bchunked",
        b"X: a\r\n b",
        b"X: a\rb",
        b"X: a\nb",
        b"X: \0",
        b" X: y",
        b"X\xff: y",
        b"X: \xff",
        b"Host: b",
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"fffffffffffffffff\r\nhello",
        b"GET /v1/hidden HTTP/1.1\r\nHost: a\r\n\r\n",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.1", b"1.0", b"1.2", b"2.0"]))
    fields = [b"Host: a", *draw(st.lists(FIELDS, max_size=3))]
    end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]))
    line = b"%b %b HTTP/%b" % (draw(METHODS), draw(TARGETS), version)
    return end.join([line, *fields, b"", b""]) + draw(BODIES)


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """What a client sends, in the pieces it comes in; the last request ends the connection."""
    data = b"".join(draw(st.lists(requests(), min_size=1, max_size=3))) + LAST
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(data) - len(LAST) - 1))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + draw(st.integers(0, 2)) :]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=5)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(pieces=conversations())
def test_the_api_sees_what_the_client_sent(stage: Stage, pieces: list[bytes]) -> None:
    """Requests reach the API as h11 reads them in the client's bytes, in order, but for those we refuse."""
    back, seen = stage.runner.run(stage.ask(pieces))
    meant = iter(requests_in(b"".join(pieces)))
    assert all(request in meant for request in seen)
    assert back.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 5" not in back
