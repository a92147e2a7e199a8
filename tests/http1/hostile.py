"""Requests that nobody should send, from a corpus and mutated, over real sockets; and what must hold then.

Law: what comes back is HTTP or an end; the API sees no request that h11 does not read in the bytes; nothing
fails inside, and no secret comes back.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import h11

from tests.harness import Proxy
from tests.sim.harness import Sim

CORPUS = Path(__file__).parent / "corpus"
LAST = b"GET /v1/last HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
AT_ONCE = 16
SILENCE = 0.4
"""Seconds without a byte after which what was sent counts as half a request."""
PATIENCE = 20.0
PIECES = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\0",
        b"\xff",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"0",
        b"-1",
        b"/",
        b"%00",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 7\r\n", b"Connection: close\r\n", b"Host: a\r\n"),
    *(
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"0\r\n\r\n",
        b"HTTP/1.0",
    ),
    b"GET /v1/hidden HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
)


_BLANKS = re.compile(rb"\A(\S+) +(\S+) +(?=HTTP/)")


def corpus() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(CORPUS.iterdir())}


def heads_in(data: bytes) -> tuple[list[tuple[bytes, bytes]], int]:
    """Method and target of what h11 reads in the bytes of a client, and how many of them have a whole body.

    Empty lines before a request count for nothing (RFC 9112 §2.2), and several blanks in its line as one
    (§3), though h11 allows neither. An upload is sent on while it comes, so that the API may see the head of
    one that is then broken off.
    """
    found: list[tuple[bytes, bytes]] = []
    whole = 0
    with suppress(h11.RemoteProtocolError):
        while True:
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
            connection.receive_data(_BLANKS.sub(rb"\1 \2 ", data.lstrip(b"\r\n")))
            head = connection.next_event()
            if not isinstance(head, h11.Request):
                break
            found.append((head.method, head.target))
            while isinstance(event := connection.next_event(), h11.Data):
                pass
            if not isinstance(event, h11.EndOfMessage):
                break
            whole += 1
            data = connection.trailing_data[0]
    return found, whole


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """A few bytes of it changed: inserted, cut out, repeated, or taken from another."""
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        at, size = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 5, 20))
        kind = chance.randrange(6)
        if kind == 0:
            data = data[:at] + chance.choice(PIECES) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + size :]
        elif kind == 2:
            data = data[: at + size] + data[at : at + size] + data[at + size :]
        elif kind == 3:
            data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        elif kind == 4:
            other = chance.choice(others)
            data = data[:at] + other[chance.randrange(len(other)) :]
        else:
            line = chance.choice(data.split(b"\r\n"))
            data = data[:at] + line + b"\r\n" + data[at:]
    return data


def in_pieces(data: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 0, 1, 3))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@dataclass
class Attack:
    """On one proxy, whose API is the simulator. `breaches` says what did not hold, and for which bytes."""

    proxy: Proxy
    sim: Sim
    secrets: tuple[str, ...]
    connections: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)

    def run(self, conversations: list[list[bytes]]) -> None:
        """Hold them, some at once, and then look at what the API saw and what the proxy said."""
        self.sim.http.delete("/_sim/requests").raise_for_status()
        lines = len(self.proxy.err.lines)
        asyncio.run(self._hold(conversations))
        meant: Counter[tuple[str, str]] = Counter()
        for pieces in conversations:
            for method, target in heads_in(b"".join(pieces))[0]:
                meant[method.decode("latin-1"), path_of(target.decode("latin-1"))] += 1
        # The simulator has a word of its own for a handshake.
        seen = Counter(
            ("GET" if record["method"] == "WEBSOCKET" else record["method"], record["target"])
            for record in self.sim.requests()
        )
        if smuggled := seen - meant:
            self.breaches.append(f"the API saw what nobody sent: {dict(smuggled)}")
        said = "\n".join(self.proxy.err.lines[lines:])
        if "This is a bug" in said or "Traceback" in said:
            self.breaches.append(f"the log tells of a bug: {said[:2000]}")
        if self.proxy.process.poll() is not None:
            self.breaches.append(f"the proxy ended with {self.proxy.process.returncode}")

    async def _hold(self, conversations: list[list[bytes]]) -> None:
        turn = asyncio.Semaphore(AT_ONCE)

        async def hold(pieces: list[bytes]) -> None:
            async with turn:
                await self._converse(pieces)

        await asyncio.gather(*map(hold, conversations))

    async def _converse(self, pieces: list[bytes]) -> None:
        parts = urlsplit(self.proxy.url)
        data = b"".join(pieces)
        whole = bool(heads_in(data)[1])
        self.connections += 1
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError as error:
            self.breaches.append(f"no connection any more: {error}")
            return
        back, silent = b"", False
        with suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            while not silent:
                patience = PATIENCE if whole and not back else SILENCE
                try:
                    async with asyncio.timeout(patience):
                        chunk = await reader.read(1 << 20)
                except TimeoutError:
                    silent = True
                    break
                if not chunk:
                    break
                back += chunk
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self._judge(data, back, unanswered=whole and silent and not back)

    def _judge(self, data: bytes, back: bytes, *, unanswered: bool) -> None:
        if unanswered:
            self.breaches.append(f"no answer to {data!r}")
        if wrong := self._not_http(data, back):
            self.breaches.append(f"{wrong} for {data[:3000]!r}: {back[:1000]!r}")
        if b'"internal_error"' in back:
            self.breaches.append(f"an internal error for {data[:3000]!r}")
        if any(secret.encode() in back for secret in self.secrets):
            self.breaches.append(f"a secret came back for {data[:3000]!r}")

    def _not_http(self, data: bytes, back: bytes) -> str:
        """Why what came back is no row of answers; the empty text if it is. One that was cut is none."""
        methods = [method for method, _ in heads_in(data)[0]]
        while back:
            method = methods.pop(0) if methods else b"GET"
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
            if back.startswith(b"HTTP/1.1 101 ") and b"websocket" in data.lower():
                self.answers[101] += 1
                return ""
            # CONNECT would end HTTP for this parser; no answer to it means that here.
            method = b"GET" if method == b"CONNECT" else method
            connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
            connection.send(h11.EndOfMessage())
            connection.receive_data(back)
            try:
                event = connection.next_event()
                while isinstance(event, h11.InformationalResponse):
                    event = connection.next_event()
                if event is h11.NEED_DATA:
                    return ""
                if not isinstance(event, h11.Response):
                    return f"not an answer: {event}"
                self.answers[event.status_code] += 1
                while isinstance(connection.next_event(), h11.Data):
                    pass
            except h11.RemoteProtocolError as error:
                return f"not HTTP: {error}"
            back = connection.trailing_data[0] if connection.their_state is h11.DONE else b""
        return ""

    def check_afterwards(self) -> None:
        """An honest request is served, and nothing is under way any more."""
        answer = self.proxy.http.post("/v1/echo/honest", content=b"honest")
        if answer.status_code != 200:
            self.breaches.append(f"an honest request got {answer.status_code}")
        if self.proxy.health()["status"] != "ok":
            self.breaches.append(f"health says {json.dumps(self.proxy.health())}")


def path_of(target: str) -> str:
    """As the API is asked: absolute form becomes the path (RFC 9112 §3.2.2)."""
    _, absolute, rest = target.partition("://")
    return f"/{rest.partition('/')[2]}" if absolute and not target.startswith("/") else target
