"""What systemd, or whoever speaks its protocols, hands to a service and is told by it.

Sockets it has opened (sd_listen_fds(3)), readiness and signs of life (sd_notify(3)). Without it nothing
happens. These variables are how the two processes talk, and no settings of a person's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from grok_oauth_proxy.errors import ConfigurationError

_FIRST_DESCRIPTOR: Final = 3
_MICROSECONDS: Final = 1e6
_TOLD_WITHIN: Final = 1.0
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def inherited_sockets() -> list[socket.socket]:
    """The listening sockets that were opened for this process, if any; asked once, they are gone.

    Raises `ConfigurationError` for what cannot be connected to: a pipe, datagrams, a connection (Accept=yes).
    """
    meant_for, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(os.getpid()) or not count.isdigit():
        return []
    return [_listening(_FIRST_DESCRIPTOR + number) for number in range(int(count))]


def _listening(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        if sock.family in _FAMILIES and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return sock
    except OSError:  # no socket at all
        pass
    raise ConfigurationError(
        f"Descriptor {descriptor}, handed over by LISTEN_FDS, is no listening stream socket. "
        "Use ListenStream= in the socket unit, without Accept=yes."
    )


class Manager:
    """The service manager that waits for news of this process, or nobody."""

    def __init__(self) -> None:
        # Taken out: no process that this one starts speaks for the service.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        meant_for = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        limit = os.environ.pop("WATCHDOG_USEC", "")
        # Opened now: where no file can be opened any more, signs of life are still given.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        mine = limit.isdigit() and meant_for == str(os.getpid())
        self.patience = int(limit) / _MICROSECONDS if mine else 0.0
        """Seconds without a sign of life after which it ends this process; 0 for ever."""

    def __repr__(self) -> str:
        return f"Manager({self._address!r})"

    def tell(self, *news: str) -> None:
        """Assignments like READY=1. Whether they arrive is the manager's business."""
        if self._socket is None:
            return
        # A name in the abstract namespace is written with an @ in the place of its leading NUL.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError):
            self._socket.settimeout(_TOLD_WITHIN)
            self._socket.sendto("\n".join(news).encode(), address)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    async def reassure(self, tell: Callable[[], object] | None = None) -> None:
        """Tell it, for as long as the event loop turns, that it does; by `tell` where that is another way."""
        while self.patience:
            (tell or partial(self.tell, "WATCHDOG=1"))()
            await asyncio.sleep(self.patience / 2)


def watched(patience: float) -> dict[str, str]:
    """The variables of a process that is to give signs of life to the one that starts it."""
    return {"WATCHDOG_USEC": str(int(patience * _MICROSECONDS))}
