"""Several processes behind one port. Each is a whole proxy; what they share, they share through files.

Law: the grant is spent by one of them at a time, under the lock of its store, like by any other owner of it.
A worker that dies is replaced, and so is one whose event loop stands still; when this process goes, however
it goes, they go too.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from prometheus_client.multiprocess import mark_process_dead

from grok_oauth_proxy.bugs import log_bug
from grok_oauth_proxy.errors import ConfigurationError
from grok_oauth_proxy.observe.log import logger
from grok_oauth_proxy.settings import environment_as_given
from grok_oauth_proxy.systemd import watched

READY: Final = b"ready\n"
"""What a worker writes to its standard output when it serves."""
ALIVE: Final = b"alive\n"
"""What it writes there for as long as its event loop turns, four times in the patience it is given."""

_FOLDERS: Final = "grok-oauth-proxy-metrics-"
_SHORTEST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
_LONG_LIFE: Final = 60.0
"""Seconds. The pause before a replacement doubles each time, until a worker has lived this long."""


def settings_handed_over() -> Mapping[str, str]:
    """What the process that started this worker wants to count of the settings file.

    Raises `ConfigurationError` when there is none: it tells that by a pipe, and ends the worker by its end.
    """
    told = None
    with suppress(ValueError):
        if sys.stdin is not None and _is_pipe(0):
            told = json.loads(sys.stdin.buffer.readline())
    if not isinstance(told, dict):
        raise ConfigurationError("--worker is for the proxy's own use. Set PROXY_WORKERS to have workers.")
    return {str(name): str(value) for name, value in told.items()}


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)  # asyncio takes sockets for it, on some Pythons


@contextmanager
def metrics_folder() -> Iterator[str]:
    """A folder for what the workers count. Such folders of processes that were killed are removed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        with suppress(OSError):
            _remove_left_over(folder)
    with tempfile.TemporaryDirectory(prefix=_FOLDERS) as name, Path(name, "new").open("w") as lock:
        # Held before it has its name, and until this process ends, however it does.
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(name, "new").rename(Path(name, "lock"))
        yield name


def _remove_left_over(folder: Path) -> None:
    """If it is this user's own and no link. Raises `OSError` when its lock is held."""
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


class Workers:
    """`count` processes that serve `sockets`; their metrics add up in `folder`.

    `added`: what counts for them of the settings file, which they do not read before they are told to.
    `patience`: seconds without a sign of life after which one that serves is killed.
    """

    def __init__(
        self,
        count: int,
        sockets: Sequence[socket.socket],
        folder: str,
        added: Callable[[], Mapping[str, str]],
        *,
        patience: float = 60.0,
        on_ready: Callable[[], object],
        on_end: Callable[[], object],
        on_hangup: Callable[[], object] | None,
    ) -> None:
        self._count = count
        self._sockets = sockets
        self._folder = folder
        self._added = added
        self._patience = patience
        self._on_ready = on_ready
        self._on_end = on_end
        self._on_hangup = on_hangup
        self._running: set[Process] = set()
        self._serving: set[Process] = set()
        self._behind: set[Process] = set()
        self._told = False
        self._one_serves = asyncio.Event()
        self._ending = asyncio.Event()
        self._code = 0

    def __repr__(self) -> str:
        return f"Workers({sorted(process.pid for process in self._running)})"

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or until the last start has failed; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._end, number)
        if self._on_hangup is not None:
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        async with asyncio.TaskGroup() as places:
            # The first alone: what keeps it from starting is then told once.
            places.create_task(self._keep())
            await self._one_serves.wait()
            for _ in range(self._count - 1):
                places.create_task(self._keep())
        return self._code

    def _end(self, number: signal.Signals) -> None:
        # The first signal lets open answers end; Ctrl-C after it cuts them, as in a single process. The first
        # is passed on as SIGTERM: a worker that is still starting would print a traceback on SIGINT.
        if self._ending.is_set() and number == signal.SIGHUP:
            return  # a closed terminal sends it twice: see `Server`
        if not self._ending.is_set():
            self._on_end()
        passed_on = number if self._ending.is_set() else signal.SIGTERM
        self._ending.set()
        self._one_serves.set()
        for sock in self._sockets:
            sock.close()  # clients would otherwise wait in its queue until the last worker has ended
        for process in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(passed_on)

    def _hang_up(self) -> None:
        assert self._on_hangup is not None  # noqa: S101 - for the type checker
        try:
            self._on_hangup()
        except Exception as error:  # noqa: BLE001 - the workers are told all the same
            log_bug("A signal was not answered.", error)
        for process in self._serving:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)
        self._behind |= self._running - self._serving  # it may have read the settings already

    async def _keep(self) -> None:
        """Keep a worker in one place until the end."""
        loop = asyncio.get_running_loop()
        pause = _SHORTEST_PAUSE
        while not self._ending.is_set():
            began = loop.time()
            try:
                process = await self._start()
            except OSError as error:
                news = f"cannot be started: {error.strerror}"
            else:
                news = f"has ended with code {await self._see_through(process)}"
            if self._ending.is_set():
                return
            if loop.time() - began >= _LONG_LIFE:
                pause = _SHORTEST_PAUSE
            logger.warning("A worker %s; another one is started in %d s.", news, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _start(self) -> Process:
        descriptors = [sock.fileno() for sock in self._sockets]
        served = [argument for descriptor in descriptors for argument in ("--worker", str(descriptor))]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "grok_oauth_proxy", "serve", *served),
            stdin=PIPE,  # a line of settings; it ends when this closes
            stdout=PIPE,
            pass_fds=descriptors,
            env={
                **environment_as_given(),
                "PROMETHEUS_MULTIPROC_DIR": self._folder,
                **watched(self._patience / 2),
            },
            start_new_session=True,  # Ctrl-C in a terminal would reach it as a second signal
        )
        assert process.stdin is not None  # noqa: S101 - for the type checker
        process.stdin.write(json.dumps(self._added()).encode() + b"\n")
        self._running.add(process)
        if self._ending.is_set():
            process.terminate()
        return process

    async def _see_through(self, process: Process) -> int:
        """From its start to its end; its exit code."""
        assert process.stdout is not None  # noqa: S101 - for the type checker
        while (line := await process.stdout.readline()) == ALIVE:
            pass  # it loads its login
        if served := line == READY:
            self._serves(process)
            await self._heed(process, process.stdout)
        code = await process.wait()
        self._running.discard(process)
        self._serving.discard(process)
        self._behind.discard(process)
        mark_process_dead(process.pid, self._folder)  # type: ignore[no-untyped-call]  # it has no types
        if not served:
            self._forget(process)
            if not (self._running or self._ending.is_set()):
                self._code = code
                self._end(signal.SIGTERM)
        return code

    async def _heed(self, process: Process, signs: asyncio.StreamReader) -> None:
        """Until it ends; kill it when its signs of life stay away."""
        missed = 0
        while missed < 2:  # halves: after this process was stopped itself, one is missed although a sign came
            try:
                if not await asyncio.wait_for(signs.readline(), self._patience / 2):
                    return
                missed = 0
            except TimeoutError:
                missed += 1
        logger.error(
            "Worker %d has given no sign of life for %.0f s: it is killed.", process.pid, self._patience
        )
        with suppress(ProcessLookupError):
            process.kill()

    def _forget(self, process: Process) -> None:
        """Remove the metrics of a worker that has never served; those of others stay in the sum."""
        for left in Path(self._folder).glob(f"*_{process.pid}.db"):
            left.unlink()

    def _serves(self, process: Process) -> None:
        self._serving.add(process)
        if process in self._behind:
            self._behind.discard(process)
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)
        self._one_serves.set()
        if len(self._serving) == self._count and not (self._told or self._ending.is_set()):
            self._told = True
            self._on_ready()
