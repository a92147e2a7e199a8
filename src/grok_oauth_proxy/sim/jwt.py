"""JSON Web Tokens as the authorization server shapes them (RFC 7519), signed with random bytes."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping

KEY_ID = "sim-key-1"


def segment(data: bytes) -> str:
    """base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def mint(claims: Mapping[str, object]) -> str:
    """Three base64url segments; the signature has ES256's length and verifies against nothing."""
    header = {"alg": "ES256", "typ": "JWT", "kid": KEY_ID}
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in (header, dict(claims))]
    return ".".join([*map(segment, parts), segment(secrets.token_bytes(64))])


def key_set() -> dict[str, object]:
    """A well-formed JWK set (RFC 7517) whose key is random."""
    x, y = (segment(secrets.token_bytes(32)) for _ in range(2))
    key = {"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KEY_ID, "x": x, "y": y}
    return {"keys": [key]}
