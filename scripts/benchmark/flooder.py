"""One process of a flood: keeps connections open on which little or nothing is said.

  python -m scripts.benchmark.flooder PORT CONNECTIONS RATE SECONDS ADDRESS

Of twenty, nine are silent, nine send a head and two a body, a byte now and then. Prints a JSON object: how
many were opened, open at a time, closed by the proxy, not let in, and answered with each status.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

EVERY = 2.0
"""Seconds between two bytes on a connection."""
TICK = 0.05
HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
BODY = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
KINDS: Sequence[tuple[bytes, bytes]] = [(b"", b"")] * 9 + [(HEAD, b"x")] * 9 + [(BODY, b"1\r\nx\r\n")] * 2
"""What is sent first, and what follows."""


class Plan(NamedTuple):
    """`connections` open at a time, `rate` new ones a second, `seconds` in all."""

    port: int
    connections: int
    rate: int
    seconds: float
    address: str = "127.0.0.1"


class Flooder:
    """Runs a `Plan`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._poll = select.epoll()
        self._open: dict[int, tuple[socket.socket, int]] = {}
        self._spoke: dict[int, float] = {}
        # Kinds in turn; the place of one that was closed goes to another of its kind.
        self._free = [number % len(KINDS) for number in range(plan.connections)]
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        began = time.monotonic()
        while (now := time.monotonic() - began) < self._plan.seconds:
            while self._free and self.counts["opened"] < now * self._plan.rate:
                self._dial(self._free.pop(0))
            self._speak()
            self.counts["open"] = max(self.counts["open"], len(self._open))
            for number, _ in self._poll.poll(TICK):
                self._hear(number)

    def _dial(self, kind: int) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(1)
        self.counts["opened"] += 1
        try:
            sock.bind((self._plan.address, 0))
            sock.connect(("127.0.0.1", self._plan.port))
            sock.setblocking(False)
            if KINDS[kind][0]:
                sock.send(KINDS[kind][0])
        except OSError:
            self.counts["refused"] += 1
            self._free.append(kind)
            sock.close()
            return
        self._open[sock.fileno()] = sock, kind
        self._spoke[sock.fileno()] = time.monotonic()
        self._poll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)

    def _speak(self) -> None:
        """A byte on each whose turn it is: they stand in the order in which they spoke."""
        due = time.monotonic() - EVERY
        for number in [*self._spoke]:
            if self._spoke[number] > due:
                return
            del self._spoke[number]
            sock, kind = self._open[number]
            if KINDS[kind][1]:
                with suppress(OSError):
                    sock.send(KINDS[kind][1])
                self._spoke[number] = time.monotonic()

    def _hear(self, number: int) -> None:
        sock, kind = self._open[number]
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.counts[data[9:12].decode("latin-1")] += 1
            return
        self.counts["closed"] += 1
        self._poll.unregister(sock)
        del self._open[number]
        self._spoke.pop(number, None)
        sock.close()
        self._free.append(kind)


if __name__ == "__main__":
    port, connections, rate, seconds, address = sys.argv[1:]
    flooder = Flooder(Plan(int(port), int(connections), int(rate), float(seconds), address))
    flooder.run()
    print(json.dumps(flooder.counts))
