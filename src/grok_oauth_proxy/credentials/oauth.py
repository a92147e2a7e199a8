"""The authorization server: where it is, and what its answers to a refresh mean.

Law (facts: OAuth server): only a top-level string `error` of invalid_grant or invalid_client ends a grant;
403 with JSON means the account is not entitled; whatever else is not a token is transient, HTML above all.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from pydantic import SecretStr

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.token import Grant, fresh_token, refresh_text
from grok_oauth_proxy.origins import UntrustedOrigin, trusted_url

TERMINAL_ERRORS = frozenset({"invalid_grant", "invalid_client"})
_REFUSED = frozenset(
    {"unreachable", "certificate", "egress_refused", "untrusted_token_endpoint", "not_json", "http_503"}
)
"""Failures before the grant was looked at, as every 4xx is: no connection, a firewall's page, no capacity."""
_MAX_REPLY = 256 * 1024
_MAX_RETRY_AFTER = 300.0
"""Seconds. A longer pause would outlive the recovery of the server."""
_ENDPOINTS = (
    "token_endpoint",
    "device_authorization_endpoint",
    "authorization_endpoint",
    "revocation_endpoint",
)
_PATIENCE = 20.0
_DISCOVERY_PATIENCE = 5.0
"""Seconds for a whole answer, not for its next byte: Hermes' lock is held meanwhile."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A new access token; `rotated` is False when the reply kept the refresh token (RFC 6749 §6)."""

    grant: Grant
    rotated: bool


@dataclass(frozen=True, slots=True)
class Terminal:
    """The refresh token will never work again; `error` is the RFC 6749 §5.2 code."""

    error: str


@dataclass(frozen=True, slots=True)
class NotEntitled:
    """The account may not use the API; neither a refresh nor a new login changes that."""


@dataclass(frozen=True, slots=True)
class Transient:
    """No verdict. `reason` is from a fixed set, `retry_after` seconds if the server named some."""

    reason: str
    retry_after: float | None = None

    @property
    def may_have_spent(self) -> bool:
        """The server may have rotated the link before it failed to say so."""
        return not (self.reason in _REFUSED or self.reason.startswith("http_4"))


Outcome = Refreshed | Terminal | NotEntitled | Transient


class Refresher(Protocol):
    """Spends a refresh token: see `AuthorizationServer`."""

    @property
    def token_endpoint(self) -> str: ...
    async def discover(self) -> None: ...
    async def refresh(self, grant: Grant, client_id: str) -> Outcome: ...


class AuthorizationServer:
    """Discovery and refresh. Never raises for what a server answers or a network does: see `Outcome`."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        issuer: str,
        *,
        allow_loopback: bool,
        connect_timeout: float,
        clock: Clock,
    ) -> None:
        self._client = client
        self._issuer = issuer
        self._allow_loopback = allow_loopback
        self._timeout = httpx.Timeout(_PATIENCE, connect=connect_timeout)
        self._clock = clock
        self._discovered: dict[str, str] = {}
        self._untrusted = False

    @property
    def token_endpoint(self) -> str:
        """The discovered endpoint, or the documented one while discovery has not succeeded."""
        return self.endpoint("token_endpoint") or f"{self._issuer}/oauth2/token"

    def endpoint(self, name: str) -> str | None:
        """What discovery said, by the name it has there (RFC 8414 §2); None if nothing."""
        return self._discovered.get(name)

    @property
    def discovered(self) -> bool:
        """Whether discovery has succeeded."""
        return bool(self._discovered)

    async def refresh(self, grant: Grant, client_id: str) -> Outcome:
        """Spend the refresh token of `grant` once."""
        if self._untrusted:
            return Transient("untrusted_token_endpoint")
        form = {
            "grant_type": "refresh_token",
            "client_id": client_id,
            "refresh_token": grant.refresh_token.get_secret_value(),
        }
        token = grant.token
        if (token.principal_type or "").casefold() == "team" and token.principal_id:
            form |= {"principal_type": token.principal_type or "", "principal_id": token.principal_id}
        try:
            async with asyncio.timeout(_PATIENCE):
                status, headers, body = await self.ask("POST", self.token_endpoint, form)
        except TimeoutError:
            return Transient("timeout")
        except httpx.HTTPError as error:
            return Transient(network_reason(error))
        return judge(grant, status, headers, body, now=self._clock.wall())

    async def discover(self) -> None:
        """Learn the endpoints once. Only a token endpoint outside x.ai stops a refresh; failure does not."""
        if self._discovered:
            return
        try:
            async with asyncio.timeout(_DISCOVERY_PATIENCE):
                url = f"{self._issuer}/.well-known/openid-configuration"
                status, _, body = await self.ask("GET", url)
        except (TimeoutError, httpx.HTTPError):
            return
        document = (json_object(body) or {}) if status == httpx.codes.OK else {}
        named = {name: value for name in _ENDPOINTS if isinstance(value := document.get(name), str)}
        trusted = {name: self._trusted(value) for name, value in named.items()}
        if "token_endpoint" in trusted:
            self._untrusted = trusted["token_endpoint"] is None
            self._discovered = {} if self._untrusted else {name: at for name, at in trusted.items() if at}

    def _trusted(self, url: str) -> str | None:
        try:
            return trusted_url(url, allow_loopback=self._allow_loopback)
        except UntrustedOrigin:
            return None

    async def ask(
        self, method: str, url: str, form: dict[str, str] | None = None
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of one answer; raises `httpx.HTTPError`. No redirect is followed."""
        headers = {"accept": "application/json"}
        async with self._client.stream(
            method, url, data=form, headers=headers, timeout=self._timeout
        ) as response:
            body = b""
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_REPLY:
                    raise httpx.RemoteProtocolError("the reply is too long")
            return response.status_code, response.headers, body


def judge(grant: Grant, status: int, headers: httpx.Headers, body: bytes, *, now: float) -> Outcome:
    """What an answer of the token endpoint to the refresh of `grant` means (pure)."""
    reply = json_object(body)
    if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return Transient(f"http_{status}", retry_after(headers))
    if status == httpx.codes.OK:
        return _accept(grant, reply, now) if reply else Transient("malformed_reply")
    if reply is None:
        return Transient("not_json" if body else "empty_reply")
    error = reply.get("error")
    if httpx.codes.is_client_error(status) and isinstance(error, str) and error in TERMINAL_ERRORS:
        return Terminal(error)
    # No verdict either: an error that is no text, and one that calls itself temporary.
    flat = reply and isinstance(error, str | None) and error != "temporarily_unavailable"
    return NotEntitled() if status == httpx.codes.FORBIDDEN and flat else Transient(f"http_{status}")


def _accept(grant: Grant, reply: dict[str, Any], now: float) -> Outcome:
    renewed = read_reply(reply, now=now, before=grant)
    if renewed is None:
        return Transient("malformed_reply")
    return Refreshed(renewed, rotated=renewed.fingerprint != grant.fingerprint)


def read_reply(reply: dict[str, Any], *, now: float, before: Grant | None = None) -> Grant | None:
    """The grant in a successful reply (RFC 6749 §5.1) that came at wall time `now`; None when it has none.

    No refresh_token in the reply means that the one `before` stays good (RFC 6749 §6).
    """
    access, refresh = token_text(reply.get("access_token")), refresh_text(reply.get("refresh_token"))
    if not refresh and before:
        refresh = before.refresh_token.get_secret_value()
    if not access or not refresh:
        return None
    identity = token_text(reply.get("id_token"))
    expires_in = reply.get("expires_in")
    seconds = expires_in if type(expires_in) is int and 0 < expires_in < 10**9 else None
    return Grant(
        token=fresh_token(access, expires_in=seconds, now=now),
        refresh_token=SecretStr(refresh),
        id_token=SecretStr(identity) if identity else (before.id_token if before else None),
        token_type=token_text(reply.get("token_type")) or "Bearer",
        expires_in=seconds,
    )


def token_text(value: object) -> str | None:
    """A token that may stand in a header, if it is one."""
    if not isinstance(value, str) or not value or len(value) > _MAX_REPLY:
        return None
    return value if all(0x21 <= ord(character) <= 0x7E for character in value) else None


def json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, or None."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return reply if isinstance(reply, dict) else None


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds as the server says, five minutes at most."""
    value = headers.get("retry-after", "")
    return min(float(value), _MAX_RETRY_AFTER) if value.isascii() and value.isdigit() else None


def network_reason(error: httpx.HTTPError) -> str:
    """Why there was no answer, from a fixed set."""
    if isinstance(error, httpx.ProxyError):
        return "egress_refused"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "certificate" if _distrusts(error) else "unreachable"
    return "timeout" if isinstance(error, httpx.TimeoutException) else "broken_off"


def _distrusts(error: BaseException | None) -> bool:
    """Whether a certificate that does not verify lies behind it."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
