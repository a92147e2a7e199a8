"""Where clients of the proxy are sent, and what a person must know before they go there."""

from __future__ import annotations

from urllib.parse import urlsplit

import click

from grok_oauth_proxy.cli.clients import UNKNOWN_KEY, Endpoint
from grok_oauth_proxy.cli.running import (
    MAKE_KEY,
    Absent,
    address_of,
    base_url,
    find_running,
    has_named_keys,
    key_trouble,
    socket_path,
)
from grok_oauth_proxy.egress import egress_proxy
from grok_oauth_proxy.errors import ConfigurationError, ProxyError
from grok_oauth_proxy.settings import Settings


def find_endpoint(settings: Settings) -> Endpoint:
    """That of the running proxy, else the configured one; what is wrong with it is said on standard error.

    Raises `ProxyError` when only a start will tell the port.
    """
    found = find_running(settings)
    if isinstance(found, Absent):
        address = found.address if found.code == "wrong_key" else None
        click.echo(found.message, err=True)
    else:
        address = found.address
        if trouble := key_trouble(found, settings):
            click.echo(trouble, err=True)
    address = address or _configured(settings)
    key = settings.proxy_api_key.get_secret_value() if settings.proxy_api_key else None
    unknown = key is None and has_named_keys(settings)
    if unknown and isinstance(found, Absent) and found.code != "wrong_key":
        click.echo(f"The proxy demands a key. {MAKE_KEY}", err=True)
    certificate = settings.proxy_tls_cert if address.startswith("https://") else None
    endpoint = Endpoint(
        base_url(address),
        UNKNOWN_KEY if unknown else key,
        socket_path(address),
        str(certificate) if certificate else None,
    )
    if endpoint.socket is None:
        _tell_of_egress(endpoint.base_url)
    return endpoint


def _configured(settings: Settings) -> str:
    if not settings.proxy_tcp and settings.proxy_uds:
        return f"unix:{settings.proxy_uds}"
    if settings.proxy_port == 0:
        raise ProxyError(
            "PROXY_PORT=0 takes any free port, so that the address is known only while the proxy runs. "
            "Start it first.",
            code="no_address",
        )
    return address_of(settings)


def _tell_of_egress(base_url: str) -> None:
    """Clients heed the same variables, and would look for this machine by way of another."""
    try:
        led_away = egress_proxy(base_url) is not None
    except ConfigurationError:
        led_away = True
    if led_away:
        click.echo(
            "HTTP_PROXY or ALL_PROXY leads clients away from this address. "
            f"Add {urlsplit(base_url).hostname} to NO_PROXY.",
            err=True,
        )
