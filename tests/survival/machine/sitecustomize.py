"""What a machine may do to a process. Python runs this first in one that has this folder in PYTHONPATH.

SURVIVAL_KILL_AT="EVENT NAME COUNT": SIGKILL at the COUNT-th audit event EVENT (os.rename to, or open of, a
file whose name matches NAME), counted from when the file SURVIVAL_ARMED is there. It is removed by that, so
that one process is killed and not its successor.
SURVIVAL_CLOCK=FILE: the wall clock is ahead by as many seconds as the file says; the monotonic one is not.
SURVIVAL_NO_NAMES=FILE: while the file is there, no name is resolved. The event loop is Python's own.
"""

from __future__ import annotations

import fnmatch
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path


def end_at(wanted: str, name: str, count: int, armed: str) -> None:
    """Nothing is done after the event begins: a file that would be renamed then is not."""
    seen = 0

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event != wanted:
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if not isinstance(path, str | os.PathLike) or not fnmatch.fnmatch(Path(path).name, name):
            return
        if not os.path.exists(armed):  # noqa: PTH110 - Path.exists may open something one day
            return
        seen += 1
        if seen == count:
            with suppress(FileNotFoundError):
                os.unlink(armed)  # noqa: PTH108 - as above
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def move_clock(file: Path) -> None:
    real = time.time
    time.time = lambda: real() + float(file.read_text())


def resolve_nothing(while_there: str) -> None:
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # it resolves names without being heard

    def hear(event: str, _: tuple[object, ...]) -> None:
        if event == "socket.getaddrinfo" and os.path.exists(while_there):  # noqa: PTH110 - as above
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    sys.addaudithook(hear)


if at := os.environ.get("SURVIVAL_KILL_AT"):
    kind, pattern, number = at.split()
    end_at(kind, pattern, int(number), os.environ["SURVIVAL_ARMED"])
if clock := os.environ.get("SURVIVAL_CLOCK"):
    move_clock(Path(clock))
if no_names := os.environ.get("SURVIVAL_NO_NAMES"):
    resolve_nothing(no_names)
