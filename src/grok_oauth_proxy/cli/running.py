"""Finds the proxy that runs beside this command, and asks it how it is.

Law: the key goes only to a program that answered as this proxy does when a key is missing, and over TLS only
to who has the certificate in PROXY_TLS_CERT. Where the proxy listens stands in the file `address` beside its
state; that file may be older than what answers there.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Literal

import httpx

from grok_oauth_proxy.address import ADDRESS_FILE, read_address
from grok_oauth_proxy.credentials.client_keys import KeysFile
from grok_oauth_proxy.moving.pinning import pinned_context
from grok_oauth_proxy.settings import Settings

PATIENCE: Final = 3.0
"""Seconds for a whole answer."""
_DEEP_PATIENCE: Final = 6.0

_ADDRESS: Final = re.compile(r"https?://(?:([0-9.]+)|\[([0-9a-f:.]+)\]):([0-9]{1,5})")
_MAX_REPORT: Final = 256 * 1024
_UNIX: Final = re.compile(r"unix:(/.+)")
_ANYWHERE: Final = {"://0.0.0.0:": "://127.0.0.1:", "://[::]:": "://[::1]:"}
_KEY_PROBE: Final = "/v1/v1/"
"""Behind the front door, and refused there: it costs the API nothing."""


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that answers at `address` (http[s]://HOST:PORT or unix:PATH); `report`: its /health's JSON."""

    address: str
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Absent:
    """No proxy that can be asked. `message` ends with the next step."""

    code: Literal["not_running", "no_answer", "other_program", "wrong_key"]
    message: str
    address: str | None = None


def find_running(settings: Settings) -> Running | Absent:
    """Read the address file and ask who is there; takes `PATIENCE` seconds twice at most."""
    path = settings.grok_proxy_auth_state.with_name(ADDRESS_FILE)
    try:
        noted = read_address(path)
    except FileNotFoundError:
        return Absent("not_running", f"No proxy is running here. {_start_it()}")
    except OSError as error:
        return Absent("not_running", f"{path} cannot be read: {error.strerror}. Make it readable.")
    if not _is_address(noted):
        return Absent("no_answer", f"{path} holds no address. Start the proxy: it writes the file anew.")
    return ask(reachable(noted), settings)


def _start_it() -> str:
    from grok_oauth_proxy.cli.service.managers import start_line

    return f"Start it with `{start_line()}`."


def socket_path(address: str) -> str | None:
    """The path of a Unix socket, None where the address is none."""
    match = _UNIX.fullmatch(address) if address.isprintable() else None
    return match[1] if match else None


def base_url(address: str) -> str:
    """Where OpenAI clients find the API; over a Unix socket its host means nothing."""
    return f"{_origin(address)}/v1"


def _origin(address: str) -> str:
    return "http://localhost" if socket_path(address) else address


def _is_address(text: str) -> bool:
    if socket_path(text):
        return True
    match = _ADDRESS.fullmatch(text)
    try:
        return match is not None and bool(ip_address(match[1] or match[2])) and 0 < int(match[3]) < 65536
    except ValueError:
        return False


def reachable(address: str) -> str:
    """An address to connect to, where the proxy listens on all of them."""
    for anywhere, loopback in _ANYWHERE.items():
        address = address.replace(anywhere, loopback)
    return address


def address_of(settings: Settings) -> str:
    """Where a start with these settings would serve, if its port were free."""
    scheme = "https" if settings.proxy_tls_cert else "http"
    host = f"[{settings.proxy_host}]" if ":" in settings.proxy_host else settings.proxy_host
    return reachable(f"{scheme}://{host}:{settings.proxy_port}")


def ask(address: str, settings: Settings) -> Running | Absent:
    """Who answers at `address`."""
    try:
        status, body = _get(address, "/health", None, settings)
        if _wants_key(status, body) and settings.proxy_api_key:
            status, body = _get(address, "/health", settings.proxy_api_key.get_secret_value(), settings)
    except _NotTrusted as reason:
        return Absent("other_program", str(reason), address)
    except httpx.ConnectError:
        message = f"Nothing answers at {address}, where the proxy was. {_start_it()}"
        return Absent("no_answer", message, address)
    except httpx.HTTPError:
        message = f"What listens at {address} gives no answer. Look whether the proxy hangs, and restart it."
        return Absent("no_answer", message, address)
    if _wants_key(status, body):
        return Absent("wrong_key", f"The proxy at {address} wants its key. {_set_key(settings)}", address)
    report = _json_object(body)
    if report.get("provider") == "xai-oauth" and isinstance(report.get("status"), str):
        return Running(address, report)
    message = f"Another program answers at {address}, where the proxy was. Start the proxy again."
    return Absent("other_program", message, address)


_SET_KEY: Final = (
    "Set PROXY_API_KEY here to the value the proxy was started with, or in ~/.config/grok-oauth-proxy.env "
    "for both."
)
MAKE_KEY: Final = (
    "Of the keys that clients have, only digests are kept: make one with `grok-oauth-proxy keys add NAME`, "
    "and set PROXY_API_KEY here to it."
)


def has_named_keys(settings: Settings) -> bool:
    """Whether a proxy with these settings demands a key that is known by its digest only."""
    return KeysFile(settings.keys_file).stamp() is not None


def _set_key(settings: Settings) -> str:
    return MAKE_KEY if has_named_keys(settings) else _SET_KEY


def key_trouble(running: Running, settings: Settings) -> str | None:
    """What is wrong with the key that this environment would have clients send, or None."""
    key = settings.proxy_api_key.get_secret_value() if settings.proxy_api_key else None
    try:
        refused = _wants_key(*_get(running.address, _KEY_PROBE, key, settings))
    except (httpx.HTTPError, _NotTrusted):
        return None
    return f"The proxy at {running.address} wants another key. {_set_key(settings)}" if refused else None


def ask_deep(running: Running, settings: Settings) -> dict[str, Any] | None:
    """What it says of itself once it has asked the API; None when it gives no answer in time."""
    key = settings.proxy_api_key.get_secret_value() if settings.proxy_api_key else None
    try:
        _, body = _get(running.address, "/health?deep=1", key, settings, _DEEP_PATIENCE)
    except (httpx.HTTPError, _NotTrusted):
        return None
    return _json_object(body)


class _NotTrusted(Exception):
    """What answers does not show that it is the proxy. The text ends with the next step."""


def _trust(address: str, settings: Settings) -> ssl.SSLContext:
    """Trust in the proxy of these settings and in nobody else; raises `_NotTrusted`."""
    if not address.startswith("https://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # empty: loading certificates takes time
    if settings.proxy_tls_cert is None:
        raise _NotTrusted(
            f"The proxy at {address} speaks TLS. Set PROXY_TLS_CERT here to the file it was started with."
        )
    try:
        return pinned_context(settings.proxy_tls_cert)
    except (OSError, ValueError):
        raise _NotTrusted(
            f"PROXY_TLS_CERT {settings.proxy_tls_cert} cannot be read, or holds no certificate. Correct it."
        ) from None


def _get(
    address: str, path: str, key: str | None, settings: Settings, patience: float = PATIENCE
) -> tuple[int, bytes]:
    """Status and body, cut off after `patience` and `_MAX_REPORT`.

    Raises `httpx.HTTPError` or `_NotTrusted`.
    """
    tls = _trust(address, settings)
    try:
        return _ask_over(tls, address, path, key, patience)
    except httpx.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise
        raise _NotTrusted(
            f"What answers at {address} has another certificate than {settings.proxy_tls_cert}. If that was "
            "renewed, restart the proxy; else correct PROXY_TLS_CERT."
        ) from None


def _ask_over(
    tls: ssl.SSLContext, address: str, path: str, key: str | None, patience: float
) -> tuple[int, bytes]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    deadline = time.monotonic() + patience
    transport = httpx.HTTPTransport(verify=tls, uds=socket_path(address))
    with (
        httpx.Client(transport=transport, trust_env=False, timeout=patience) as client,
        client.stream("GET", _origin(address) + path, headers=headers) as answer,
    ):
        body = b""
        for chunk in answer.iter_bytes():
            body += chunk
            if len(body) > _MAX_REPORT or time.monotonic() > deadline:
                break
        return answer.status_code, body


def _wants_key(status: int, body: bytes) -> bool:
    error = _json_object(body).get("error")
    return status == httpx.codes.UNAUTHORIZED and isinstance(error, dict) and error.get("code") == _WRONG_KEY


_WRONG_KEY: Final = "invalid_api_key"


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
