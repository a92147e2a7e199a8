"""Credential files on disk: private, whole or not at all, and locked across processes.

Law: a reader sees the old file or the new one, never a part; the new one is on the disk before anybody acts
on it; nobody but the owner can read it at any moment.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import AsyncFileLock, Timeout

from grok_oauth_proxy.errors import StoreProblem

LOCK_TIMEOUT = 30.0
"""Seconds to wait for another owner. Hermes holds the lock during its own refresh, up to 25 s."""

_MAX_STORE = 16 * 1024 * 1024
_SLACK = 16 * 1024
_ABANDONED = 60.0
"""Seconds after which a temporary file is nobody's any more."""


@asynccontextmanager
async def locked(
    paths: tuple[Path, ...], timeout: float = LOCK_TIMEOUT, *, needless: Callable[[], bool] | None = None
) -> AsyncIterator[None]:
    """Hold the lock files, in this order; raise `StoreProblem` when one can't be had in time.

    The wait ends early, in the same way, once it is `needless`.

    The lock is flock(2) on the file, which is left in place: what Hermes takes too.
    """
    async with AsyncExitStack() as stack:
        for path in paths:
            try:
                lock = AsyncFileLock(path, timeout=timeout, mode=0o600)
                await stack.enter_async_context(await lock.acquire(cancel_check=needless))
            except Timeout:
                raise StoreProblem(
                    f"Another program has held {path} for {timeout:.0f} s. End it, or wait for it.",
                    code="lock_busy",
                ) from None
            except OSError as error:
                raise StoreProblem(
                    f"Cannot lock {path}: {error.strerror}. Make the folder writable for this user.",
                    code="lock_failed",
                ) from None
        yield


def _real(path: Path) -> Path:
    """The file that `path` names. Its folder may be a link; it may be one only to a file in that folder.

    Else whoever may write there once has our tokens taken from, or put into, a place nobody looks after.
    Raises `StoreProblem` with code unsafe_link.
    """
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(path.parent)):
        raise StoreProblem(
            f"{path} is a link to {target}, outside its folder, so it is not used. "
            "Put the file itself there, or link the whole folder.",
            code="unsafe_link",
        )
    return target


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raise `StoreProblem`: missing, unreadable, unsafe_link or corrupt."""
    target = _real(path)
    try:
        # Opening a pipe in a file's place would wait for its writer for ever.
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            text = file.read(_MAX_STORE + 1) if regular else b""
    except FileNotFoundError:
        raise StoreProblem(f"{path} does not exist.", code="missing") from None
    except OSError as error:
        raise StoreProblem(
            f"{path} cannot be read: {error.strerror}. Make it readable for this user.", code="unreadable"
        ) from None
    if not regular:
        raise StoreProblem(f"{path} is not a regular file. Put the file back.", code="unreadable")
    try:
        content = json.loads(text) if len(text) <= _MAX_STORE else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise StoreProblem(f"{path} is damaged: it is not a JSON object.", code="corrupt")
    return content


def rehearse_write(path: Path) -> None:
    """Write and sync a file a little larger than `path` beside it, and remove it. Raises OSError."""
    target = _to_be_written(path)
    temporary, descriptor = _open_beside(target)
    try:
        size = target.stat().st_size if target.exists() else 0
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(size + _SLACK))
            file.flush()
            os.fsync(file.fileno())
    finally:
        temporary.unlink()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` by `content`, atomically, mode 0600, on disk when this returns. Raises OSError.

    A link to a file in the same folder is followed, as Hermes does: the file is replaced, the link stays.
    """
    target = _to_be_written(path)
    temporary, descriptor = _open_beside(target)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            _keep_owner(file.fileno(), target)
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        replaceable = _replaced(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if not replaceable:
        _rewrite(target, temporary.read_bytes())
        temporary.unlink()
    _sync_directory(target.parent)
    _sweep(target)


def _to_be_written(path: Path) -> Path:
    try:
        return _real(path)
    except StoreProblem:
        raise OSError(errno.ELOOP, "it is a link that leads outside its folder", str(path)) from None


def _rewrite(target: Path, content: bytes) -> None:
    """Put `content` into the file itself. Blanks behind JSON mean nothing, so that it is never cut short."""
    with target.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.write(b" " * (len(content) - size))
        file.flush()  # where there is no room, it shows here, and the old content still stands
        file.seek(0)
        file.write(content.ljust(size))
        file.flush()
        os.fsync(file.fileno())


def _open_beside(target: Path) -> tuple[Path, int]:
    """A new private file beside `target`, which `_sweep` knows by its name, opened to be written."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(8)}.tmp")
    return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _sweep(target: Path) -> None:
    """Remove what processes that were killed while writing `target` left beside it."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()


def _keep_owner(descriptor: int, target: Path) -> None:
    """Root may serve another user's store, which that user must still be able to read."""
    if os.geteuid() == 0 and target.exists():
        status = target.stat()
        os.fchown(descriptor, status.st_uid, status.st_gid)


def _replaced(temporary: Path, target: Path) -> bool:
    """False for a file mounted by itself (a container's bind mount), which can only be rewritten."""
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        return False
    return True


Fingerprint = tuple[tuple[int, int, int] | None, ...]
"""Of each file what changes whenever it is written: mtime in ns, size and inode; None where there is none."""


def stamp(path: Path) -> tuple[int, int, int] | None:
    """One member of a `Fingerprint`."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def is_there(path: Path) -> bool:
    """False too where this user may not look: reading it tells why."""
    return os.access(path, os.F_OK)


def unwritable(path: Path, lock: Path) -> bool:
    """Whether this user could not replace `path` under `lock`, judged without writing."""
    target = Path(os.path.realpath(path))
    return not (
        os.access(target, os.W_OK)
        and _may_replace(target)
        and os.access(lock if is_there(lock) else path.parent, os.W_OK)
    )


def _may_replace(path: Path) -> bool:
    """Whether this user may put another file in the place of `path`; in a sticky folder only an owner may."""
    folder = path.parent.stat()
    owners = (0, folder.st_uid, path.stat().st_uid)
    return os.access(path.parent, os.W_OK) and (not folder.st_mode & stat.S_ISVTX or os.geteuid() in owners)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private(path: Path) -> bool:
    """Close a file or folder of ours to others; True when something had to be repaired.

    Raises OSError, and `StoreProblem` (unsafe_link) for a file that is somewhere else.
    """
    status = path.stat()
    if stat.S_ISREG(status.st_mode):
        _real(path)
    private = {stat.S_IFREG: 0o600, stat.S_IFDIR: 0o700}.get(stat.S_IFMT(status.st_mode))
    if private is None or status.st_uid != os.geteuid() or not status.st_mode & 0o077:
        return False
    path.chmod(status.st_mode & private)
    return True


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that it is kept; return its new name. Raises OSError."""
    number = 1
    while (kept := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    return path.rename(kept)
