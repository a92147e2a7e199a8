"""Access tokens and grants as frozen values.

The claims of the JWT steer timing and name the client; its signature is the API's to verify, not ours
(facts: OAuth server). Claims are hostile input: anything of the wrong type counts as absent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any

from pydantic import SecretStr

_MAX_JWT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer for the API. Times are seconds since the epoch by the local wall clock.

    `expires_at` is None when neither a claim nor the reply tells it; such a token is used until refused.
    """

    bearer: SecretStr
    issued_at: float
    expires_at: float | None
    client_id: str | None = None
    subject: str | None = None
    principal_type: str | None = None
    principal_id: str | None = None
    tier: int | None = None

    def remaining(self, now: float) -> float:
        """Seconds until expiry, negative once expired, infinite when unknown."""
        return math.inf if self.expires_at is None else self.expires_at - now

    @property
    def lifetime(self) -> float:
        """Seconds from issue to expiry, infinite when unknown."""
        return math.inf if self.expires_at is None else max(0.0, self.expires_at - self.issued_at)

    def refresh_window(self, configured: float) -> float:
        """How long before expiry to refresh: never more than a quarter of the token's own life.

        A fixed window longer than a short token's life would refresh on every call and burn the chain. It is
        never shorter than `margin`, or a token could be too old to be sent and too young to be refreshed.
        """
        return min(max(configured, self.margin), self.lifetime / 4)

    @property
    def margin(self) -> float:
        """Seconds a token must still live to outlast its journey to the API."""
        return min(1.0, self.lifetime / 20)


@dataclass(frozen=True, slots=True)
class Grant:
    """One link of the chain: an access token and the single-use refresh token that came with it."""

    token: Token
    refresh_token: SecretStr
    id_token: SecretStr | None = None
    token_type: str = "Bearer"  # noqa: S105 - a scheme, not a secret
    expires_in: int | None = None

    @property
    def fingerprint(self) -> str:
        """Names this link without revealing it: the first half of the refresh token's SHA-256, in hex."""
        return hashlib.sha256(self.refresh_token.get_secret_value().encode()).hexdigest()[:32]


def read_token(bearer: str, *, id_token: str | None = None) -> Token:
    """A token as found in a store, its times taken from its claims."""
    claims = jwt_claims(bearer)
    return Token(
        bearer=SecretStr(bearer),
        issued_at=_seconds(claims, "iat") or 0.0,
        expires_at=_seconds(claims, "exp"),
        client_id=_client_id(claims) or _client_id(jwt_claims(id_token or "")),
        subject=_text(claims, "sub"),
        principal_type=_text(claims, "principal_type"),
        principal_id=_text(claims, "principal_id"),
        tier=_small_number(claims, "tier"),
    )


def fresh_token(bearer: str, *, expires_in: float | None, now: float) -> Token:
    """A token as just received at wall time `now`; `expires_in` seconds comes from the reply, if it says so.

    `exp` decides. Only when the local clock disagrees with it by more than half the token's life is expiry
    counted from receipt: a clock that runs ahead would otherwise make every new token look expired and spend
    a refresh token on each request.
    """
    stored = read_token(bearer)
    expires_at = stored.expires_at
    lifetime = stored.lifetime if stored.issued_at and expires_at else expires_in
    if lifetime is not None:
        promised = now + lifetime
        if expires_at is None or abs(expires_at - promised) > lifetime / 2:
            expires_at = promised
    return replace(stored, issued_at=now, expires_at=expires_at)


def refresh_text(value: object) -> str | None:
    """A refresh token, if it is one: it travels in a form, so that any printable text will do."""
    text = value.strip() if isinstance(value, str) else ""
    return text if text and text.isprintable() and len(text) <= _MAX_JWT else None


def jwt_claims(jwt: str) -> dict[str, Any]:
    """The payload of a JWT, or an empty dict when it is not one."""
    segments = jwt.split(".")
    if len(segments) != 3 or len(jwt) > _MAX_JWT:
        return {}
    try:
        padded = segments[1] + "=" * (-len(segments[1]) % 4)
        claims = json.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
    except (binascii.Error, UnicodeError, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _client_id(claims: dict[str, Any]) -> str | None:
    audience = claims.get("aud")
    if isinstance(audience, list):
        audience = audience[0] if audience else None
    return _text(claims, "client_id") or _text({"aud": audience}, "aud")


def _text(claims: dict[str, Any], name: str) -> str | None:
    value = claims.get(name)
    return value if isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable() else None


def _small_number(claims: dict[str, Any], name: str) -> int | None:
    value = claims.get(name)
    return value if type(value) is int and 0 <= value < 10**6 else None


def _seconds(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < 1e11 else None
