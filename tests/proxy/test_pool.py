"""The connections to the API through whatever happens to them, in every order that hypothesis thinks of.

The API is in this process, over real sockets, and does what it is told. What is watched is its side: who asks
over which connection, and which are still open.
"""

from __future__ import annotations

import asyncio
import os
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.egress import tls_context
from grok_oauth_proxy.proxy.upstream import Answer, Request, Upstream, UpstreamFailure
from tests.proxy.api import OK, whole

TLS: Final = tls_context()
PATIENCE: Final = 10.0
"""Seconds of real time after which something counts as not happening."""
FRESH: Final = 55.0
"""Seconds for which an idle connection is used again."""
WHICH: Final = st.integers(0, 9)
"""Of those that there are."""
ENDS: Final = ("close", "garbage", "surplus", "cut")
"""Answers after which a connection may not be used again."""


@dataclass(eq=False)
class Line:
    """One connection as the API sees it."""

    writer: StreamWriter
    asked: str = ""
    """The request on it that is not answered yet."""
    partly: bool = False
    """Its answer has begun."""
    idle_since: float = 0.0
    ended: bool = False


@dataclass
class Asked:
    """One request as its client sees it."""

    task: asyncio.Task[Answer]
    line: Line | None = None


@dataclass
class Api:
    """Where the connections lead."""

    lines: list[Line] = field(default_factory=list)
    two_at_once: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self) -> int:
        self.server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        line = Line(writer)
        self.lines.append(line)
        self.news.set()
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.two_at_once |= bool(line.asked)
                line.asked = head.split(b" ", 2)[1].decode()
                self.news.set()
        line.ended = True
        self.news.set()
        writer.close()

    @property
    def live(self) -> list[Line]:
        return [line for line in self.lines if not line.ended]


class Pool(RuleBasedStateMachine):
    """A few clients, the pool, and the API."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = count_of_descriptors()
        self.runner = asyncio.Runner()
        self.wall = 1000.0
        self.api = Api()
        port = self.run(self.api.open())
        self.upstream = Upstream(
            f"http://127.0.0.1:{port}/v1",
            proxy=None,
            tls=TLS,
            connect_timeout=PATIENCE,
            read_timeout=PATIENCE,
            clock=Clock(wall=lambda: self.wall),
        )
        self.number = 0
        self.asked: dict[str, Asked] = {}

    def run(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(doing, PATIENCE))

    async def until(self, holds: Callable[[], bool]) -> None:
        """The client's side tells nobody what it has noticed."""
        deadline = asyncio.get_running_loop().time() + PATIENCE / 2
        while not holds():
            assert asyncio.get_running_loop().time() < deadline, self._seen()
            await asyncio.sleep(0)

    # What happens.

    @rule(many=st.integers(1, 3))
    def requests_come(self, many: int) -> None:
        self.run(self._ask(many))

    @rule(which=WHICH, kind=st.sampled_from(("whole", "whole", "whole", "head", *ENDS)))
    def the_api_answers(self, which: int, kind: str) -> None:
        if self.asked:
            self.run(self._answer([*self.asked][which % len(self.asked)], kind))

    @rule(which=WHICH)
    def a_client_goes(self, which: int) -> None:
        if self.asked:
            self.run(self._leave([*self.asked][which % len(self.asked)]))

    @rule(turns=st.integers(0, 3))
    def a_client_comes_and_goes_at_once(self, turns: int) -> None:
        self.run(self._come_and_go(turns))

    @rule(which=WHICH, says=st.sampled_from((b"", b"HTTP/1.1 408 Too late\r\n\r\n", b"\0")))
    def the_api_ends_an_idle_connection(self, which: int, says: bytes) -> None:
        if idle := [line for line in self.api.live if not line.asked]:
            self.run(self._end(idle[which % len(idle)], says))

    @rule(seconds=st.sampled_from([1.0, 50.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.wall += seconds

    @rule(count=st.integers(0, 3))
    def connections_are_warmed(self, count: int) -> None:
        assert self.run(self.upstream.warm(count))
        for line in self.api.live:
            line.idle_since = line.idle_since or self.wall

    # What must hold.

    @invariant()
    def every_connection_is_accounted_for(self) -> None:
        """Open are those that the API sees, and idle those of them that nobody asks over."""
        self.run(self.until(self._is_so))
        assert not self.api.two_at_once
        assert len({id(asked.line) for asked in self.asked.values()}) == len(self.asked)

    def teardown(self) -> None:
        try:
            for name in sorted(self.asked):
                self.run(self._leave(name))
            self.every_connection_is_accounted_for()
            self.run(self.upstream.aclose())
            self.every_connection_is_accounted_for()
            assert self.api.live == []
            assert [task for task in asyncio.all_tasks(self.runner.get_loop()) if not task.done()] == []
        finally:
            self.api.server.close()
            self.runner.close()
        assert count_of_descriptors() == self.descriptors

    def _is_so(self) -> bool:
        live = self.api.live
        idle = [line for line in live if not line.asked]
        return self._seen() == (len(live), len(idle))

    def _seen(self) -> tuple[int, int]:
        """Open and idle, as the pool counts them."""
        counts = re.search(r"open=(\d+), idle=(\d+)", repr(self.upstream))
        assert counts
        return int(counts[1]), int(counts[2])

    # How it is done.

    async def _ask(self, many: int) -> None:
        before = len(self.api.lines)
        fresh = sum(not line.asked and self.wall - line.idle_since < FRESH for line in self.api.live)
        names = []
        for _ in range(many):
            self.number += 1
            name = f"/v1/{self.number}"
            request = Request("GET", name.encode(), [(b"host", b"x")], None)
            self.asked[name] = Asked(asyncio.create_task(self.upstream.send(request)))
            names.append(name)
        await self.until(lambda: {*names} <= {line.asked for line in self.api.lines})
        for line in self.api.live:
            if line.asked in names:
                self.asked[line.asked].line = line
        assert len(self.api.lines) - before == max(many - fresh, 0), (
            "idle ones are used before others are made"
        )

    async def _answer(self, name: str, kind: str) -> None:
        asked = self.asked[name]
        assert asked.line is not None
        line, body = asked.line, name.encode()
        if line.partly:
            kind = "rest" if kind == "head" else kind
        if kind == "head":
            line.partly = True
            line.writer.write(OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body[:2]))
            await asked.task
            return
        del self.asked[name]
        head = (
            OK
            + (b"Connection: close\r\n" if kind == "close" else b"")
            + b"Content-Length: %d\r\n\r\n" % len(body)
        )
        data = body[2:] if line.partly else head + body
        if kind == "garbage" and not line.partly:
            data = b"HTP/1.1 what\r\n\r\n"
        elif kind == "surplus":
            data += b"HTTP/1.1 200 OK\r\n\r\n"
        elif kind in ("cut", "garbage"):
            data = data[:-1]
        was_partly, line.partly = line.partly, False
        keeps = kind in ("whole", "rest") or (kind == "close" and was_partly)
        line.asked, line.idle_since = "" if keeps else "over", self.wall
        line.writer.write(data)
        if kind == "cut" or (kind == "garbage" and was_partly):
            line.writer.close()
            line.ended = True
        await self._check_answer(asked, None if kind in ("garbage", "cut") else body)

    async def _check_answer(self, asked: Asked, body: bytes | None) -> None:
        """The client gets its own answer, or a failure where there is none."""
        try:
            answer = await asked.task
            got: bytes | None = await whole(answer)
        except UpstreamFailure:
            got = None
        assert got == body

    async def _leave(self, name: str) -> None:
        asked = self.asked.pop(name)
        assert asked.line is not None
        asked.line.asked = "left"
        if asked.task.done():
            await asked.task.result().aclose()
        else:
            asked.task.cancel()
            await asyncio.wait({asked.task})
        await self.until(lambda: asked.line is not None and asked.line.ended)

    async def _come_and_go(self, turns: int) -> None:
        """Before it is connected, or just then."""
        request = Request("GET", b"/v1/gone", [(b"host", b"x")], None)
        task = asyncio.create_task(self.upstream.send(request))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await self.until(lambda: all(line.asked != "/v1/gone" for line in self.api.live) and self._is_so())

    async def _end(self, line: Line, says: bytes) -> None:
        if says:
            line.writer.write(says)
            await self.until(lambda: line.ended)
        else:
            line.writer.close()
            line.ended = True


def count_of_descriptors() -> int:
    """Open in this process; 0 where the system does not tell."""
    place = Path("/proc/self/fd")
    return len(os.listdir(place)) if place.exists() else 0  # noqa: PTH208 - its own descriptor counts each time


TestPool = Pool.TestCase
TestPool.settings = settings(
    max_examples=100,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],  # making a finding small takes minutes: scripts/fuzz does
)
