"""Where the proxy listens: a port, a Unix socket, or what a service manager has opened; and for how many."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from grok_oauth_proxy.errors import ConfigurationError, StartRefused
from grok_oauth_proxy.http1.crowd import Bounds
from grok_oauth_proxy.settings import Settings

UNIX: Final = "unix:"
"""What the address of a Unix socket begins with."""
FURTHER_PORTS: Final = 20
_BACKLOG: Final = 2048
_RESERVE: Final = 128
"""Descriptors for what is no connection, and for what is accepted while others are being closed."""
_OPEN_MAX: Final = 10240
"""What macOS takes where its hard limit is none."""
_PROBE: Final = 1.0
"""Seconds to connect to what may listen on this machine."""
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_OVERFLOW: Final = 65534
"""Who owns what belongs to nobody in this user namespace (user_namespaces(7))."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket; `address` is http://HOST:PORT, https://HOST:PORT or unix:PATH."""

    socket: socket.socket
    address: str


def bounds(settings: Settings) -> Bounds:
    """What a process's connections may do, once it may open as many descriptors as the system lets it.

    PROXY_MAX_CONNECTIONS is lowered to what these are enough for: each may need another one to the API.
    """
    wanted = settings.proxy_max_connections
    return Bounds(
        connections=max(1, min(wanted, (_raised_descriptor_limit() - _RESERVE) // 2)),
        per_client=settings.proxy_max_connections_per_client,
        head=settings.proxy_head_timeout,
        body_stall=settings.proxy_body_timeout,
        body_size=settings.proxy_max_body,
    )


def _raised_descriptor_limit() -> int:
    """The limit of open descriptors, after raising it to the hard one, as Go programs do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    for aim in (hard, _OPEN_MAX):
        if aim == resource.RLIM_INFINITY or aim <= soft != resource.RLIM_INFINITY:
            continue
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
            return aim
    return _OPEN_MAX if unlimited and soft == resource.RLIM_INFINITY else soft


@contextmanager
def listeners(settings: Settings, opened: Sequence[socket.socket]) -> Iterator[list[Listener]]:
    """What to serve: the sockets that were `opened` for this process, else those the settings name.

    Raises `ConfigurationError` or `StartRefused`.
    """
    with ExitStack() as stack:
        if opened:
            yield [Listener(stack.enter_context(sock), _address(sock, settings)) for sock in opened]
            return
        if not (settings.proxy_tcp or settings.proxy_uds):
            raise ConfigurationError("PROXY_TCP is false and PROXY_UDS is not set: set one of them.")
        found: list[Listener] = []
        if settings.proxy_tcp:
            sock = stack.enter_context(listen(settings.proxy_host, settings.proxy_port))
            found.append(Listener(sock, _address(sock, settings)))
        if settings.proxy_uds:
            path = _absolute(settings.proxy_uds)  # other commands are run elsewhere
            found.append(Listener(stack.enter_context(unix_socket(path)), f"{UNIX}{path}"))
        yield found


def _absolute(path: Path) -> Path:
    try:
        path = path.absolute()
    except FileNotFoundError:
        raise _refused(path, "the folder that this was started in is gone. Use an absolute path.") from None
    if not str(path).isprintable():
        raise _refused(Path(repr(str(path))), "it has control characters. Choose another path.")
    return path


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on `port` or one of the next 20 that is free (0: any).

    Raises `ConfigurationError` when the host means nothing, `StartRefused` when it cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):  # the second from a label that IDNA can't encode
        raise ConfigurationError(f"PROXY_HOST {host!r} is not an address of this machine.") from None
    last = min(port + FURTHER_PORTS, 65535) if port else 0
    for candidate in range(port, last + 1):
        if (sock := _try_to_listen(family, (address[0], candidate, *address[2:]))) is not None:
            return sock
    raise StartRefused(
        f"Ports {port} to {last} on {host} are all in use. End what uses them, or set PROXY_PORT.",
        code="no_free_port",
    )


def _try_to_listen(family: int, address: tuple[Any, ...]) -> socket.socket | None:
    # With the protocol named, asyncio turns Nagle's algorithm off; without it each answer may wait 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise StartRefused(
            f"Cannot listen on {address[0]} port {address[1]}: {error.strerror}. "
            "Choose another PROXY_HOST or PROXY_PORT.",
            code="cannot_listen",
        ) from None
    return sock


@contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket in the file system that only this user can open; its file goes with it.

    One that nobody listens on any more is replaced. Raises `StartRefused`.
    """
    check_place(path)
    if path.exists() and _answers(path):
        raise _refused(path, "another program listens there. End it, or choose another path.")
    # It gets its name when it listens, so that whoever finds it can connect.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            unfinished.unlink(missing_ok=True)
            sock.bind(str(unfinished))
            unfinished.chmod(0o600)
            sock.listen(_BACKLOG)
            ours = unfinished.stat().st_ino
            unfinished.rename(path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            reason = error.strerror or str(error)  # the second when the path is longer than the system takes
            raise _refused(path, f"{reason}. Choose another path.") from None
        try:
            yield sock
        finally:
            with suppress(OSError):
                if path.lstat().st_ino == ours:
                    path.unlink()


def check_place(path: Path) -> None:
    """Whether a socket may be made there, as far as the file system tells; raises `StartRefused`."""
    try:
        folders = [path.parent, *path.parent.resolve(strict=True).parents]
        found = path.lstat() if path.is_symlink() or path.exists() else None
        open_ones = [folder for folder in folders if _is_open(folder, exactly=folder is folders[0])]
        open_ones += [folder for folder in path.parents if not _is_trusted(folder.lstat().st_uid)]
    except OSError as error:
        raise _refused(path, f"{error.strerror}: {path.parent}. Make the folder, with mode 0700.") from None
    if open_ones:
        raise _refused(
            path, f"others can write to {open_ones[0]}, and could replace it. Use a folder of your own."
        )
    if found is not None and not stat.S_ISSOCK(found.st_mode):
        raise _refused(path, "something else than a socket is there. Choose another path.")


def _is_open(folder: Path, *, exactly: bool) -> bool:
    """Whether others could put something of theirs in the place of what it holds.

    Farther up a group that may write is mostly the user's own, and the sticky bit keeps what is there.
    """
    found = folder.stat()
    if exactly:
        return found.st_uid not in (os.geteuid(), 0) or bool(found.st_mode & _WRITABLE_BY_OTHERS)
    open_to_all = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
    return not _is_trusted(found.st_uid) or bool(open_to_all)


def _is_trusted(owner: int) -> bool:
    """Whether it is this user, or root, whom a user namespace (the unit's PrivateUsers) shows as nobody."""
    return owner in (os.geteuid(), 0, _OVERFLOW)


def is_listened_at(address: str) -> bool:
    """Whether somebody listens at an address of a `Listener`."""
    try:
        if address.startswith(UNIX):
            path = Path(address.removeprefix(UNIX))
            return path.is_socket() and _answers(path)
        url = urlsplit(address)
        if url.hostname is None or url.port is None:
            return False
        socket.create_connection((url.hostname, url.port), _PROBE).close()
    except (OSError, ValueError):
        return False
    return True


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # its queue is full, or it is not ours to ask
    return True


def _refused(path: Path, why: str) -> StartRefused:
    return StartRefused(f"Cannot listen on PROXY_UDS {path}: {why}", code="cannot_listen")


def _address(sock: socket.socket, settings: Settings) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        # In the abstract namespace it is bytes that begin with NUL, for which systemd writes an @.
        return UNIX + (
            name.decode("ascii", "replace").replace("\0", "@") if isinstance(name, bytes) else name
        )
    scheme = "https" if settings.proxy_tls_cert else "http"
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
