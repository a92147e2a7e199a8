"""How a connection to the API comes to be: address, egress proxy, TLS."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar
from urllib.parse import SplitResult, urlsplit

from grok_oauth_proxy.egress import EgressRefused, connected_socket, tunnel
from grok_oauth_proxy.proxy.tls import Tls
from grok_oauth_proxy.proxy.upstream.message import UpstreamFailure

P = TypeVar("P", bound=asyncio.Protocol)

_LEARN_EVERY: Final = 300.0
"""Seconds in which a session is read once at most, should the API resume none: see `Tls.session`."""


class Dialer:
    """Opens connections to the origin of `base_url`, through `proxy` if one is given.

    `timeout`: seconds for everything until a request can be sent.
    """

    def __init__(self, base_url: str, *, proxy: str | None, tls: ssl.SSLContext, timeout: float) -> None:
        parts = urlsplit(base_url)
        self._host = parts.hostname or ""
        self._port = parts.port or _default_port(parts)
        self._tls = tls if parts.scheme == "https" else None
        self._session: ssl.SSLSession | None = None
        self._learned_at = -math.inf
        self._proxy = proxy
        self._timeout = timeout

    async def dial(self, protocol: Callable[[], P]) -> P:
        """A connected protocol; raises `UpstreamFailure`, of which no byte was sent."""
        try:
            async with asyncio.timeout(self._timeout):
                to = self._host, self._port
                sock = await (tunnel(self._proxy, *to) if self._proxy else connected_socket(*to))
                return await self._establish(sock, protocol)
        except TimeoutError:
            raise UpstreamFailure("connect_timeout", sent=False) from None
        except ssl.SSLCertVerificationError:
            raise UpstreamFailure("certificate", sent=False) from None
        except EgressRefused:
            raise UpstreamFailure("egress_refused", sent=False) from None
        except (OSError, UnicodeError):  # the second from a label that IDNA can't encode
            raise UpstreamFailure("unreachable", sent=False) from None

    def learn(self, tls: Tls) -> None:
        """Have further handshakes go on with its session (RFC 8446 §2.2), if it began one of its own."""
        now = asyncio.get_running_loop().time()
        if not tls.resumed and now - self._learned_at > _LEARN_EVERY:
            self._session, self._learned_at = tls.session, now

    def _wrapped(self, context: ssl.SSLContext) -> Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]:
        return partial(context.wrap_bio, server_hostname=self._host, session=self._session)

    async def _establish(self, sock: socket.socket, protocol: Callable[[], P]) -> P:
        connected = protocol()
        tls = Tls(self._wrapped(self._tls), connected) if self._tls else None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: tls or connected, sock=sock
            )
        except BaseException:
            with suppress(OSError):
                sock.close()
            raise
        try:
            if tls is not None:
                await tls.established
        except BaseException:
            transport.abort()
            raise
        return connected


def _default_port(parts: SplitResult) -> int:
    return 443 if parts.scheme == "https" else 80
