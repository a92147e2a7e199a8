"""How connections leave this machine: one rule for the API and the authorization server."""

from __future__ import annotations

import ssl
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import certifi
import httpx

from grok_oauth_proxy.errors import ConfigurationError


def egress_proxy(url: str) -> str | None:
    """The proxy that HTTPS_PROXY, ALL_PROXY and NO_PROXY name for `url`, if any."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    if urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]  # missing from the stubs
        parts.hostname or "", proxies
    ):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not _is_http(proxy):
        raise ConfigurationError(
            f"The egress proxy for {parts.hostname} is not an http:// or https:// address. "
            "Correct HTTPS_PROXY or ALL_PROXY, or name the host in NO_PROXY."
        )
    return proxy


def _is_http(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy)
        httpx.Proxy(proxy)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        return False


def tls_context() -> ssl.SSLContext:
    """Verifies against the system's certificates, or SSL_CERT_FILE and SSL_CERT_DIR, which OpenSSL reads.

    Where Python came without any (python.org on macOS), certifi's are used.
    """
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not any(path and Path(path).exists() for path in (paths.cafile, paths.capath)):
        context.load_verify_locations(certifi.where())
    return context
