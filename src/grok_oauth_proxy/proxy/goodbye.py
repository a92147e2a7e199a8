"""How the other side ended a connection. TLS says goodbye, or what came may not be all (RFC 9112 §9.8)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

_PIECE: Final = 256 * 1024


def said_goodbye(transport: asyncio.Transport) -> bool:
    """Whether the end of what comes is one, and no cut; asked when it has come."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    try:
        return tls is None or tls.read(1) == b""
    except ssl.SSLError:
        return False


def late_data(transport: asyncio.Transport) -> Iterator[bytes]:
    """What uvloop has decrypted but not told, when the connection was lost without a goodbye."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    with suppress(ssl.SSLError):
        while tls and (data := tls.read(_PIECE)):
            yield data
