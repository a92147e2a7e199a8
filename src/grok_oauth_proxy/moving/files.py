"""Credential files without a library: locked, private, whole or not at all.

Law: as in credentials/files.py, whose locks, file modes and temporary names these are.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from grok_oauth_proxy.moving.problems import Damaged, Problem

Json = dict[str, Any]

_LOCK_TIMEOUT = 30.0
"""Seconds to wait for another owner. Hermes holds its lock during a refresh, up to 25 s."""
_POLL = 0.05
_MAX_STORE = 16 * 1024 * 1024


@contextmanager
def locked(paths: tuple[Path, ...], timeout: float = _LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the lock files, in this order; raise `Problem` when one can't be had in time.

    The lock is flock(2), which the kernel takes back whatever becomes of this process; the file stays.
    """
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(_locked(path, timeout))
        yield


@contextmanager
def _locked(path: Path, timeout: float) -> Iterator[None]:
    deadline = time.monotonic() + timeout
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Problem(
            f"Cannot lock {path}: {error.strerror}. Make the folder writable for this user."
        ) from None
    try:
        while not _taken(descriptor, path):
            if time.monotonic() > deadline:
                raise Problem(f"Another program has held {path} for {timeout:.0f} s. End it, or wait for it.")
            time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C, and a friendly end, wait until steps that belong together are done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _taken(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise Problem(f"Cannot lock {path}: {error.strerror}. Use a file system with locks.") from None
    return True


def _real(path: Path) -> Path:
    """The file that `path` names; raise `Problem` where that lies outside its folder, which may be a link."""
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(path.parent)):
        raise Problem(
            f"{path} is a link to {target}, outside its folder, so it is not used. "
            "Put the file itself there, or link the whole folder."
        )
    return target


def read_json(path: Path) -> Json | None:
    """The JSON object in `path`, None when there is no file; raise `Problem` when it can't be read."""
    try:
        # Opening a pipe in a file's place would wait for its writer for ever.
        descriptor = os.open(_real(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            text = file.read(_MAX_STORE + 1) if regular else b""
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}. Make it readable for this user.") from None
    if not regular:
        raise Problem(f"{path} is not a regular file. Put the file back.")
    try:
        content = json.loads(text) if len(text) <= _MAX_STORE else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Damaged(f"{path} is damaged: it is not a JSON object. Repair it or move it away.")
    return content


def write_json(path: Path, content: Json) -> None:
    """Replace `path` by `content`, atomically, mode 0600, on disk when this returns; raise `Problem`.

    A link to a file in the same folder is followed, as Hermes does: the file is replaced, the link stays.
    """
    try:
        _write(_real(path), (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise Problem(
            f"{path} cannot be written: {error.strerror}. Free some space or repair its permissions."
        ) from None


def _write(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(8)}.tmp")
    try:
        _write_new(temporary, content, like=target)
        try:
            temporary.replace(target)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EXDEV):
                raise
            _rewrite(target, content)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _rewrite(target: Path, content: bytes) -> None:
    """Put `content` into a file that is mounted by itself, as in containers, and can't be replaced.

    Blanks behind JSON mean nothing, so that it is never cut short.
    """
    with target.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.write(b" " * (len(content) - size))
        file.flush()  # where there is no room, it shows here, and the old content still stands
        file.seek(0)
        file.write(content.ljust(size))
        file.flush()
        os.fsync(file.fileno())


def _write_new(path: Path, content: bytes, *, like: Path | None = None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if like is not None and os.geteuid() == 0 and like.exists():
            # Root may serve another user's store, which that user must still be able to read.
            status = like.stat()
            os.fchown(descriptor, status.st_uid, status.st_gid)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def write_new(path: Path, text: str) -> None:
    """Make a file of mode 0600, on disk when this returns; raise `Problem`, also where one is."""
    try:
        _write_new(path, text.encode())
        _sync_folder(path.parent)
    except FileExistsError:
        raise Problem(f"{path} exists already. Remove it or name another file.") from None
    except OSError as error:
        if path.is_file() and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            path.unlink()
        raise Problem(f"{path} cannot be written: {error.strerror}. Name another file.") from None


def write_numbered(beside: Path, text: str) -> Path:
    """Make a file of mode 0600 beside another, under the first free number; return its path."""
    number = 1
    while True:
        path = beside.with_name(f"{beside.stem}.replaced-{number}.json")
        if not os.path.lexists(path):
            write_new(path, text)
            return path
        number += 1


def set_aside(path: Path) -> Path:
    """Rename a file nobody understands, so that it is kept; return its new name."""
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.corrupt-{number}")):
        number += 1
    try:
        path.rename(kept)
    except OSError as error:
        raise Problem(f"{path} cannot be set aside: {error.strerror}. Move it away.") from None
    return kept


def make_folder(folder: Path) -> None:
    """Make a private folder, and those above it; one that is there stays as it is. Raises `Problem`."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Problem(
            f"{folder} cannot be made: {error.strerror}. Make the folder above it writable."
        ) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
