"""Getting a login of one's own, and ending it: device code (RFC 8628), code with PKCE (RFC 7636), revocation
(RFC 7009).

Law: what the server says to print is hostile until it is checked, and no answer is taken for one of another
sign-in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlencode

import httpx
from pydantic import SecretStr

from grok_oauth_proxy.credentials.oauth import AuthorizationServer, json_object, network_reason, read_reply
from grok_oauth_proxy.credentials.token import Grant, jwt_claims
from grok_oauth_proxy.errors import SignInFailed

SCOPE: Final = "openid profile email offline_access grok-cli:access api:access"
REFERRER: Final = "grok-oauth-proxy"
_DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_PAGE: Final = re.compile(r"https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/]")
_SLOW_DOWN: Final = 5.0
"""Seconds by which the interval grows when the server asks for it (RFC 8628 §3.5)."""

_REFUSED: Final = {
    "access_denied": "The sign-in was refused on the page. Run the command again to try once more.",
    "authorization_denied": "The sign-in was refused on the page. Run the command again to try once more.",
    "expired_token": "The code has expired before it was confirmed. Run the command again for a new one.",
    "invalid_client": "The authorization server does not know this client id. Correct XAI_OAUTH_CLIENT_ID.",
}
_NO_ANSWER: Final = (
    "The authorization server gave no usable answer ({reason}). Try again; if this lasts, check the network."
)


def _failed(reason: str) -> SignInFailed:
    known = reason if reason.isascii() and reason.isidentifier() and len(reason) <= 64 else "error"
    return SignInFailed(_REFUSED.get(known) or _NO_ANSWER.format(reason=known), code=known)


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """What a person is shown, and what is polled with. `expires_in` and `interval` in seconds."""

    device_code: SecretStr
    user_code: str
    page: str
    expires_in: float
    interval: float


@dataclass(frozen=True, slots=True)
class Pending:
    """Nobody has confirmed yet: ask again after `interval` seconds."""

    interval: float


async def request_device_code(server: AuthorizationServer, client_id: str) -> DeviceCode:
    """Begin a device login; raises `SignInFailed`."""
    reply = await _ask(
        server, _endpoint(server, "device_authorization_endpoint"), {"client_id": client_id, "scope": SCOPE}
    )
    page = reply.get("verification_uri_complete") or reply.get("verification_uri")
    code, shown = reply.get("device_code"), reply.get("user_code")
    if not (_is_plain(code) and _is_plain(shown, 32) and _is_plain(page) and _PAGE.match(str(page))):
        raise _failed("malformed_reply")
    return DeviceCode(
        SecretStr(str(code)),
        str(shown),
        str(page),
        _seconds(reply.get("expires_in"), default=1800.0),
        max(1.0, _seconds(reply.get("interval"), default=5.0)),
    )


async def poll_device(
    server: AuthorizationServer, client_id: str, code: DeviceCode, interval: float, *, now: float
) -> Grant | Pending:
    """Ask once whether the login was confirmed; raises `SignInFailed` when it never will be."""
    form = {
        "grant_type": _DEVICE_GRANT,
        "client_id": client_id,
        "device_code": code.device_code.get_secret_value(),
    }
    try:
        status, _, body = await server.ask("POST", server.token_endpoint, form)
    except httpx.HTTPError:
        return Pending(interval)  # the network may come back before the code expires
    reply = json_object(body) or {}
    if status == httpx.codes.OK:
        return _grant(reply, now) if "access_token" in reply else Pending(interval)  # a portal's page
    error = reply.get("error")
    if error == "slow_down":
        return Pending(interval + _SLOW_DOWN)
    temporary = status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR
    if error == "authorization_pending" or temporary or not isinstance(error, str):
        return Pending(interval)
    raise _failed(error)


@dataclass(frozen=True, slots=True)
class BrowserLogin:
    """What ties an answer at `redirect_uri` to the question: state, nonce and PKCE's verifier."""

    client_id: str
    redirect_uri: str
    state: SecretStr = field(default_factory=lambda: SecretStr(secrets.token_urlsafe(32)))
    nonce: SecretStr = field(default_factory=lambda: SecretStr(secrets.token_urlsafe(32)))
    verifier: SecretStr = field(default_factory=lambda: SecretStr(secrets.token_urlsafe(64)))

    def page(self, server: AuthorizationServer) -> str:
        """The address a person opens to sign in (facts: OAuth server)."""
        digest = hashlib.sha256(self.verifier.get_secret_value().encode("ascii")).digest()
        question = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": SCOPE,
            "state": self.state.get_secret_value(),
            "nonce": self.nonce.get_secret_value(),
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii"),
            "code_challenge_method": "S256",
            "plan": "generic",
            "referrer": REFERRER,
        }
        return f"{_endpoint(server, 'authorization_endpoint')}?{urlencode(question)}"

    def is_answered_by(self, state: str) -> bool:
        """Whether an answer with this state belongs to this sign-in."""
        return _same(self.state.get_secret_value(), state)

    async def redeem(self, server: AuthorizationServer, code: str, *, now: float) -> Grant:
        """The login for the code that came with the answer; raises `SignInFailed`."""
        form = {
            "grant_type": "authorization_code",
            "client_id": self.client_id,
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier.get_secret_value(),
        }
        reply = await _ask(server, server.token_endpoint, form)
        grant = _grant(reply, now)
        if grant.id_token is not None:
            nonce = jwt_claims(grant.id_token.get_secret_value()).get("nonce")
            if not _same(self.nonce.get_secret_value(), nonce if isinstance(nonce, str) else ""):
                raise SignInFailed(
                    "The answer belongs to another sign-in (its nonce differs) and is not used. Try again.",
                    code="wrong_nonce",
                )
        return grant


def refused(error: str) -> SignInFailed:
    """What the error in an answer of the authorization page means."""
    return _failed(error)


async def revoke(
    server: AuthorizationServer, grant: Grant, client_id: str
) -> Literal["revoked", "not_offered"]:
    """End the login at the server, where that is offered; raises `SignInFailed` when that did not work."""
    await server.discover()
    if not server.discovered:
        raise _failed("unreachable")
    if (endpoint := server.endpoint("revocation_endpoint")) is None:
        return "not_offered"
    form = {
        "token": grant.refresh_token.get_secret_value(),
        "token_type_hint": "refresh_token",
        "client_id": client_id,
    }
    try:
        status, _, _ = await server.ask("POST", endpoint, form)
    except httpx.HTTPError as error:
        raise _failed(network_reason(error)) from None
    if status != httpx.codes.OK:
        raise _failed(f"http_{status}")
    return "revoked"


def _endpoint(server: AuthorizationServer, name: str) -> str:
    if not server.discovered:
        raise _failed("unreachable")
    if (endpoint := server.endpoint(name)) is None:
        raise _failed("not_offered")
    return endpoint


async def _ask(server: AuthorizationServer, endpoint: str, form: dict[str, str]) -> dict[str, Any]:
    try:
        status, _, body = await server.ask("POST", endpoint, form)
    except httpx.HTTPError as error:
        raise _failed(network_reason(error)) from None
    reply = json_object(body)
    if reply is None:
        raise _failed("not_json")
    if status != httpx.codes.OK:
        told = reply.get("error")
        raise _failed(told if isinstance(told, str) else f"http_{status}")
    return reply


def _grant(reply: dict[str, Any], now: float) -> Grant:
    if (grant := read_reply(reply, now=now)) is None:
        raise _failed("malformed_reply")
    return grant


def _is_plain(value: object, longest: int = 4096) -> bool:
    """Fit for a terminal and for a form: visible ASCII."""
    return isinstance(value, str) and 0 < len(value) <= longest and all(0x21 <= ord(c) <= 0x7E for c in value)


def _seconds(value: object, *, default: float) -> float:
    return float(min(value, 3600.0)) if isinstance(value, int | float) and value > 0 else default


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "surrogatepass"))
