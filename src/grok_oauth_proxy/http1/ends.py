"""How a connection ends, beyond what asyncio tells and does."""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios
from typing import Final

# Closed by the other side. Where poll does not tell it (macOS), only a reset is seen.
_HUNG_UP: Final = getattr(select, "POLLRDHUP", 0)
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def has_hung_up(transport: asyncio.Transport) -> bool:
    """Whether the other side has closed the connection, even if what it sent before is still unread."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), _HUNG_UP)
    return bool(poll.poll(0))


def has_unread(transport: asyncio.Transport) -> bool:
    """Whether something has come that is still to be read, on a connection that the other side keeps open."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN | _HUNG_UP)
    return any(events == select.POLLIN for _, events in poll.poll(0))


def unsent(transport: asyncio.Transport) -> int:
    """Bytes that the other side has not taken yet: those here, and the system's where it tells (tcp(7))."""
    number = transport.get_extra_info("socket").fileno()
    try:
        (queued,) = struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)))
    except OSError:
        queued = 0
    return int(queued) + transport.get_write_buffer_size()


def reset_connection(transport: asyncio.Transport) -> None:
    """End it by a reset, which no reader takes for the end of what it read."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
