"""The export document: a login as it travels, and every check before it is believed.

    {"version": 1, "provider": "xai-oauth", "client_id": "…", "token_endpoint": "https://auth.x.ai/oauth2/token",
     "tokens": {"access_token", "refresh_token", "id_token"?, "token_type", "expires_in"?}}

Law: hostile until proved otherwise. Nothing but these fields, and no address that may not receive tokens.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from grok_oauth_proxy.moving.claims import MAX_TOKEN, fingerprint
from grok_oauth_proxy.moving.problems import Problem

PROVIDER = "xai-oauth"
MAX_DOCUMENT = 256 * 1024
_VERSION = 1
_FIELDS = {"version", "provider", "client_id", "token_endpoint", "tokens"}
_TOKENS = {"access_token", "refresh_token", "token_type"}
_FURTHER_TOKENS = {"id_token", "expires_in"}
_TRUSTED = re.compile(r"([a-z0-9-]{1,63}\.)*x\.ai")
_AGAIN = "Export the login again."


@dataclass(frozen=True)
class Document:
    """A login. `client_id` is None where nothing names it; such a document can be kept, but not imported."""

    client_id: str | None
    token_endpoint: str
    tokens: dict[str, Any] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.tokens["refresh_token"])

    @property
    def code(self) -> str:
        """What the importing side shows, and the exporting one asks for: eight letters and digits."""
        digest = hashlib.sha256(f"imported {self.fingerprint}".encode()).digest()
        letters = base64.b32encode(digest).decode()
        return f"{letters[:4]}-{letters[4:8]}"

    def content(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "provider": PROVIDER,
            "client_id": self.client_id,
            "token_endpoint": self.token_endpoint,
            "tokens": self.tokens,
        }

    def text(self) -> str:
        return json.dumps(self.content(), indent=2) + "\n"


def parse(raw: bytes, *, allow_loopback: bool) -> Document:
    """Read and check a document; raise `Problem` with one sentence on the first thing that is wrong."""
    if len(raw) > MAX_DOCUMENT:
        raise Problem(f"The export is larger than {MAX_DOCUMENT // 1024} KB, so it is none. {_AGAIN}")
    try:
        content = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise Problem(f"The export is not JSON, or was cut short. {_AGAIN}") from None
    return check(content, allow_loopback=allow_loopback)


def check(content: object, *, allow_loopback: bool) -> Document:
    """The document in decoded JSON; raise `Problem` as `parse` does."""
    document = _object(content, "The export", _FIELDS, frozenset())
    version = document["version"]
    if isinstance(version, bool) or version != _VERSION:
        raise Problem(f"The export has another version than {_VERSION}. Use the same release on both sides.")
    if document["provider"] != PROVIDER:
        raise Problem(f"The export is of another provider than {PROVIDER}. {_AGAIN}")
    tokens = _object(document["tokens"], "The export's tokens", _TOKENS, _FURTHER_TOKENS)
    for name in ("access_token", "id_token"):
        if name in tokens:
            _visible(tokens[name], f"tokens.{name}", MAX_TOKEN)
    _printable(tokens["refresh_token"], "tokens.refresh_token", MAX_TOKEN)
    if _visible(tokens["token_type"], "tokens.token_type", 32).lower() != "bearer":
        raise Problem(f"The export's tokens.token_type is not Bearer. {_AGAIN}")
    lifetime = tokens.get("expires_in", 1)
    if isinstance(lifetime, bool) or not isinstance(lifetime, int) or not 0 <= lifetime <= 10**9:
        raise Problem(f"The export's tokens.expires_in is not a number of seconds. {_AGAIN}")
    endpoint = _visible(document["token_endpoint"], "token_endpoint", 2048)
    if not is_trusted(endpoint, allow_loopback=allow_loopback):
        raise Problem(
            "The export's token_endpoint may not receive your tokens: it must be https on x.ai or *.x.ai. "
            "Do not use this export."
        )
    return Document(_printable(document["client_id"], "client_id", 256), endpoint, tokens)


def _object(value: object, what: str, needed: set[str], allowed: set[str] | frozenset[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Problem(f"{what} must be a JSON object. {_AGAIN}")
    for name in sorted(needed):
        if name not in value:
            raise Problem(f"{what} lacks {name}. {_AGAIN}")
    for name in sorted(value.keys() - needed - allowed):
        # A strange name may be anything, a token that slipped included.
        shown = name if re.fullmatch(r"[a-z_]{1,32}", name) else "with a strange name"
        raise Problem(f"{what} has an unknown field {shown}. {_AGAIN}")
    return value


def _printable(value: object, name: str, limit: int) -> str:
    if not isinstance(value, str):
        raise Problem(f"The export's {name} must be a text. {_AGAIN}")
    if not value:
        raise Problem(f"The export's {name} is empty. {_AGAIN}")
    if len(value) > limit:
        raise Problem(f"The export's {name} is longer than {limit} characters. {_AGAIN}")
    if not value.isprintable() or value != value.strip():
        raise Problem(f"The export's {name} has control characters, or blanks around it. {_AGAIN}")
    return value


def _visible(value: object, name: str, limit: int) -> str:
    text = _printable(value, name, limit)
    if not all(0x21 <= ord(character) <= 0x7E for character in text):
        raise Problem(f"The export's {name} has characters that can't stand in a header. {_AGAIN}")
    return text


def is_trusted(url: str, *, allow_loopback: bool) -> bool:
    """Whether this address may receive tokens: the rule of origins.py."""
    if not all(0x20 < ord(character) < 0x7F and character not in "\\?#%@" for character in url):
        return False
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").lower().rstrip("."), parts.port
    except ValueError:
        return False
    if allow_loopback and parts.scheme in ("http", "https") and _is_loopback(host):
        return True
    return parts.scheme == "https" and bool(_TRUSTED.fullmatch(host))


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
