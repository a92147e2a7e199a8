"""What the tokens say of themselves; the same reading as credentials/token.py."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

MAX_TOKEN = 64 * 1024


def fingerprint(refresh_token: str) -> str:
    """Names a link without revealing it: the first half of the refresh token's SHA-256, in hex."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()[:32]


def client_id(tokens: dict[str, Any]) -> str | None:
    """The OAuth client that the access token was made for, else the one of the id token."""
    for name in ("access_token", "id_token"):
        claims = jwt_claims(tokens.get(name))
        audience = claims.get("aud")
        if isinstance(audience, list):
            audience = audience[0] if audience else None
        for value in (claims.get("client_id"), audience):
            if isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable():
                return value
    return None


def moment(tokens: dict[str, Any], claim: str) -> float | None:
    """A time claim of the access token (`iat`, `exp`), in seconds since the epoch."""
    value = jwt_claims(tokens.get("access_token")).get(claim)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < 1e11 else None


def jwt_claims(jwt: object) -> dict[str, Any]:
    """The payload of a JWT, or an empty dict when it is not one."""
    segments = jwt.split(".") if isinstance(jwt, str) and len(jwt) <= MAX_TOKEN else []
    if len(segments) != 3:
        return {}
    try:
        padded = segments[1] + "=" * (-len(segments[1]) % 4)
        claims = json.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
    except (binascii.Error, UnicodeError, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}
