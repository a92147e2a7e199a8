"""Several processes behind one port. Each is a whole proxy; what they share, they share through files.

Law: the grant is spent by one of them at a time, under the lock of its store, like by any other owner of it.
A worker that dies is replaced; when this process goes, however it goes, they go too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from prometheus_client.multiprocess import mark_process_dead

from grok_oauth_proxy.observe.log import logger

READY: Final = b"ready\n"
"""What a worker writes to its standard output when it serves."""
_PAUSE: Final = 1.0


class Workers:
    """`count` processes that serve `sock`; their metrics add up in `folder`."""

    def __init__(self, count: int, sock: socket.socket, folder: str, *, on_ready: Callable[[], None]) -> None:
        self._count = count
        self._sock = sock
        self._folder = folder
        self._on_ready = on_ready
        self._running: set[Process] = set()
        self._ending = asyncio.Event()

    def __repr__(self) -> str:
        return f"Workers({sorted(process.pid for process in self._running)})"

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or SIGHUP; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._end)
        # The first alone: what keeps it from starting is then told once.
        first = await self._start()
        if not await self._serves(first):
            return await first.wait()
        others = [await self._start() for _ in range(self._count - 1)]
        await asyncio.gather(*(self._serves(process) for process in others))
        self._on_ready()
        await asyncio.gather(*(self._replace(process) for process in (first, *others)))
        return 0

    def _end(self) -> None:
        self._ending.set()
        for process in self._running:
            with suppress(ProcessLookupError):
                process.terminate()

    async def _start(self) -> Process:
        descriptor = self._sock.fileno()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "grok_oauth_proxy", "serve", "--worker", str(descriptor)),
            stdin=PIPE,  # it ends when this closes
            stdout=PIPE,
            pass_fds=[descriptor],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": self._folder},
        )
        self._running.add(process)
        if self._ending.is_set():
            process.terminate()
        return process

    async def _serves(self, process: Process) -> bool:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        return await process.stdout.readline() == READY

    async def _replace(self, process: Process) -> None:
        while True:
            code = await process.wait()
            self._running.discard(process)
            mark_process_dead(process.pid, self._folder)  # type: ignore[no-untyped-call]  # it has no types
            if self._ending.is_set():
                return
            logger.warning("A worker has ended with code %d; another one takes its place.", code)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _PAUSE)
                return
            process = await self._start()
