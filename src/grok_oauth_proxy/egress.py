"""How connections leave this machine: one rule for the API and the authorization server."""

from __future__ import annotations

import ssl
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import certifi
import httpx
from httpx_socks import AsyncProxyTransport
from python_socks import ProxyError

from grok_oauth_proxy.errors import ConfigurationError

_DEFAULT_PORTS = {"http": 80, "socks5": 1080}


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
            f"The egress proxy for {parts.hostname} is not an http:// or socks5:// address. "
            "Correct HTTPS_PROXY or ALL_PROXY, or name the host in NO_PROXY."
        ) from None


def _normal(proxy: str) -> str:
    """Raises ValueError unless it is an address of a kind that can be used."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    scheme = parts.scheme.removesuffix("h") if parts.scheme == "socks5h" else parts.scheme
    port = parts.port or _DEFAULT_PORTS[scheme] if scheme in _DEFAULT_PORTS else None
    if port is None or parts.port == 0 or not parts.hostname or not proxy.isprintable() or " " in proxy:
        raise ValueError("no usable address")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    login = f"{parts.username or ''}:{parts.password or ''}@" if "@" in parts.netloc else ""
    return f"{scheme}://{login}{host}:{port}"


class EgressTransport(AsyncProxyTransport):
    """httpx through an egress proxy; what keeps it from connecting is an `httpx.ConnectError`.

    httpx_socks lets it out as it is. What goes wrong on a connection that stands is httpx's already.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except (ProxyError, OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise httpx.ConnectError(type(error).__name__, request=request) from None


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
