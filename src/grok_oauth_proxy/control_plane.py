"""How the authorization server is spoken to: httpx, by the egress proxy, with the system's certificates."""

from __future__ import annotations

import ssl

import httpx

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.oauth import AuthorizationServer
from grok_oauth_proxy.egress import EgressTransport, egress_proxy
from grok_oauth_proxy.settings import Settings


def control_plane(settings: Settings, tls: ssl.SSLContext) -> httpx.AsyncClient:
    """A client for the authorization server alone. Raises `ConfigurationError` (a bad egress proxy)."""
    proxy = egress_proxy(settings.xai_oauth_issuer)
    transport = EgressTransport(proxy, tls) if proxy else None
    return httpx.AsyncClient(trust_env=False, transport=transport, verify=tls)


def authorization_server(settings: Settings, client: httpx.AsyncClient, clock: Clock) -> AuthorizationServer:
    """The server the settings name."""
    return AuthorizationServer(
        client,
        settings.xai_oauth_issuer,
        allow_loopback=settings.grok_proxy_allow_loopback_upstream,
        connect_timeout=settings.upstream_connect_timeout,
        clock=clock,
    )
