"""TLS on a client's connection."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial

from grok_oauth_proxy.proxy.tls import Tls


class ServerTls(Tls):
    """As `Tls`, but that `protocol`, which has the connection already, hears of its loss in any case."""

    def __init__(self, context: ssl.SSLContext, protocol: asyncio.Protocol) -> None:
        super().__init__(partial(context.wrap_bio, server_side=True), protocol)

    def take_over(self, transport: asyncio.Transport) -> None:
        """From now on it is told what comes on the connection."""
        transport.set_protocol(self)
        self.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        protocol, told = self._protocol, self._is_established
        super().connection_lost(exc)
        if not told:
            protocol.connection_lost(exc)
