"""The files of a service: written whole, and removed only if this command wrote them.

Law: a file without the mark in it belongs to somebody else, and is neither replaced nor removed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grok_oauth_proxy.errors import ProxyError

MARK: Final = "Written by `grok-oauth-proxy service install`, which writes it anew; your own changes: "


@dataclass(frozen=True, slots=True)
class File:
    """A file to write; MARK stands in `text`."""

    path: Path
    text: str


def is_ours(path: Path) -> bool:
    """Whether the file is there and carries the mark. Raises `ProxyError`."""
    try:
        return MARK in path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ProxyError(
            f"{path} cannot be read: {error.strerror}. Make it readable, or remove it by hand.",
            code="not_ours",
        ) from None


def refuse_foreign(paths: Sequence[Path]) -> None:
    """Raises `ProxyError` where one of the files is there and is not ours."""
    for path in paths:
        if (path.exists() or path.is_symlink()) and (path.is_symlink() or not is_ours(path)):
            raise ProxyError(
                f"{path} was not written by `grok-oauth-proxy service install`, so it stays as it is. "
                "Stop and disable that service, remove the file, then run this again.",
                code="not_ours",
            )


def write(file: File) -> None:
    """Write it at once, readable by all: no secret is in it. Raises `ProxyError`."""
    temporary = file.path.with_name(f".{file.path.name}.{os.getpid()}")
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(file.text, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.replace(file.path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ProxyError(
            f"{file.path} cannot be written: {error.strerror}. Make its folder writable.", code="not_written"
        ) from None


def remove(path: Path) -> None:
    """Remove a file of ours. Raises `ProxyError`."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ProxyError(
            f"{path} cannot be removed: {error.strerror}. Remove it by hand.", code="not_removed"
        ) from None
