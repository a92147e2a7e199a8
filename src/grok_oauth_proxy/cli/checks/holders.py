"""Which process holds a lock or a port, as Linux tells it in /proc; None where it doesn't."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_LISTENING: Final = "0A"


def lock_holder(path: Path) -> str | None:
    """Who has flock(2)ed this file."""
    with suppress(OSError, ValueError):
        inode = path.stat().st_ino
        for line in (_PROC / "locks").read_text().splitlines():
            # 1: FLOCK  ADVISORY  WRITE 7506 fe:00:2861549 0 EOF; a second field "->" marks one who waits
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
                return _named(int(fields[4]))
    return None


def port_holder(port: int) -> str | None:
    """Who listens on this TCP port; another user's process cannot be seen."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in _PROC.glob("[0-9]*") if wanted else ():
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                if str(descriptor.readlink()) in wanted:
                    return _named(int(process.name))
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _named(process: int) -> str:
    name = ""
    with suppress(OSError):
        name = re.sub(r"[^\x20-\x7e]", "?", (_PROC / str(process) / "comm").read_text().strip())
    return f"process {process}" + (f" ({name})" if name else "")
