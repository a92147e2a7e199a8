"""How connections leave this machine: one rule for the API and the authorization server."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
import sys
import urllib.request
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import aiohappyeyeballs
import certifi
import httpcore
import httpx

from grok_oauth_proxy.errors import ConfigurationError

_DEFAULT_PORTS = {"http": 80, "socks5": 1080}
_NEXT_ADDRESS = 0.25
"""Seconds after which the next address is tried beside the first (RFC 8305 §5)."""
_MAX_REPLY = 64 * 1024
_OPENED = re.compile(rb"HTTP/1\.[01] 2[0-9]{2}[ \r]")
_MAX_SOCKS_LOGIN = 255
"""Bytes of a name or password (RFC 1929 §2)."""


def egress_proxy(url: str) -> str | None:
    """The proxy that HTTPS_PROXY, ALL_PROXY and NO_PROXY name for `url`, if any, with its port.

    It is http:// or socks5://; names are looked up on its side. Raises `ConfigurationError`.
    """
    parts = urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    if urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]  # missing from the stubs
        parts.hostname or "", proxies
    ):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    try:
        return _normal(proxy) if proxy else None
    except ValueError:
        raise ConfigurationError(
            f"The egress proxy for {parts.hostname} is not an http:// or socks5:// address, or its login "
            "cannot be sent. Correct HTTPS_PROXY or ALL_PROXY, or name the host in NO_PROXY."
        ) from None


def _normal(proxy: str) -> str:
    """Raises ValueError unless it is an address of a kind that can be used."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    scheme = parts.scheme.removesuffix("h") if parts.scheme == "socks5h" else parts.scheme
    port = parts.port or _DEFAULT_PORTS[scheme] if scheme in _DEFAULT_PORTS else None
    if port is None or parts.port == 0 or not parts.hostname or not proxy.isprintable() or " " in proxy:
        raise ValueError("no usable address")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    host.strip("[]").encode("idna")
    login = f"{parts.username or ''}:{parts.password or ''}@" if "@" in parts.netloc else ""
    if scheme == "socks5":
        names = [unquote(part).encode("ascii") for part in (parts.username or "", parts.password or "")]
        if max(map(len, names)) > _MAX_SOCKS_LOGIN:
            raise ValueError("RFC 1929 §2")
    return f"{scheme}://{login}{host}:{port}"


class EgressRefused(OSError):
    """The egress proxy answered, and does not let us through."""


async def connected_socket(host: str, port: int) -> socket.socket:
    """A connection to `host` itself, by whichever of its addresses answers; raises OSError."""
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS)


async def tunnel(proxy: str, host: str, port: int) -> socket.socket:
    """A connection to `host` through `proxy`, as `egress_proxy` gives it; raises OSError."""
    if proxy.startswith("http:"):
        return await _connect_tunnel(urlsplit(proxy), host, port)
    # Few have such a proxy, and nobody else is to wait for it at every start.
    from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError
    from python_socks.async_.asyncio import Proxy

    try:
        sock: socket.socket = await Proxy.from_url(proxy, rdns=True).connect(host, port)
    except (ProxyConnectionError, ProxyTimeoutError) as error:
        raise ConnectionError(str(error)) from None
    except (ProxyError, ValueError) as error:
        raise EgressRefused(str(error)) from None
    return sock


async def _connect_tunnel(proxy: SplitResult, host: str, port: int) -> socket.socket:
    """HTTP CONNECT (RFC 9110 §9.3.6). The answer is read up to its end, in whatever pieces it comes."""
    sock = await connected_socket(proxy.hostname or "", proxy.port or 0)
    try:
        await asyncio.get_running_loop().sock_sendall(sock, _connect_request(proxy, host, port))
        await _await_opened(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _await_opened(sock: socket.socket) -> None:
    reply = b""
    while b"\r\n\r\n" not in reply:
        piece = await asyncio.get_running_loop().sock_recv(sock, 4096)
        reply += piece
        if not piece or len(reply) > _MAX_REPLY:
            raise EgressRefused("no whole answer to CONNECT")
    # In a tunnel that is open nobody says a word before we do, so that nothing follows the head.
    if not (_OPENED.match(reply) and reply.endswith(b"\r\n\r\n")):
        raise EgressRefused("CONNECT was refused")


def _connect_request(proxy: SplitResult, host: str, port: int) -> bytes:
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if "@" in proxy.netloc:
        login = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(login.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


class EgressTransport(httpx.AsyncHTTPTransport):
    """httpx through an egress proxy, as `egress_proxy` gives it."""

    def __init__(self, proxy: str, tls: ssl.SSLContext) -> None:
        super().__init__(verify=tls, trust_env=False)
        # By httpx's own ways through a proxy, a proxy that hangs up looks like a server that does.
        # No connection is kept: nothing here sees that the server has closed one that is idle.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls, network_backend=_Tunnels(proxy), max_keepalive_connections=0
        )


class _Tunnels(httpcore.AsyncNetworkBackend):
    def __init__(self, proxy: str) -> None:
        self._proxy = proxy

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - part of the interface
        socket_options: object = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                sock = await tunnel(self._proxy, host, port)
                return _Stream(*await asyncio.open_connection(sock=sock))
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except EgressRefused as error:
            raise httpcore.ProxyError(str(error)) from None
        except (OSError, UnicodeError) as error:  # the second from a label that IDNA can't encode
            raise httpcore.ConnectError(str(error)) from None


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError:
            raise httpcore.ReadTimeout from None
        except OSError as error:
            raise httpcore.ReadError(str(error)) from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError:
            raise httpcore.WriteTimeout from None
        except OSError as error:
            raise httpcore.WriteError(str(error)) from None

    async def aclose(self) -> None:
        self._writer.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except OSError as error:
            self._writer.transport.abort()
            raise httpcore.ConnectError(str(error)) from error
        return self

    def get_extra_info(self, info: str) -> object:
        return self._writer.get_extra_info(info)


def tls_context() -> ssl.SSLContext:
    """Verifies against the system's certificates, or SSL_CERT_FILE and SSL_CERT_DIR, which OpenSSL reads.

    Where Python came without any (python.org on macOS), certifi's are used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if sys.version_info >= (3, 13):  # as create_default_context() has it
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    context.load_default_certs()
    paths = ssl.get_default_verify_paths()
    if not any(path and Path(path).exists() for path in (paths.cafile, paths.capath)):
        context.load_verify_locations(certifi.where())
    return context
