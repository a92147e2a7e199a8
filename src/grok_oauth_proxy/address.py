"""The file beside the proxy's state that says where it listens: for the commands that look for it.

Law: it is a regular file of one short line, else it is not read; it is replaced whole, and never written
through a link. It needs nothing but Python, because the scripts that move a login read it too.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

ADDRESS_FILE = "address"
_LONGEST = 256
"""Bytes; a Unix socket's path has 108 at most."""


def read_address(path: Path) -> str:
    """What it says, of whoever wrote it. Raises `OSError` where there is none, or none that can be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read(_LONGEST).decode("utf-8", "replace").rstrip("\n")


def write_address(path: Path, address: str) -> None:
    """Put `address` there, whatever is in its place. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(address + "\n")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
