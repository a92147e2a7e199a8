"""The proxy's bookkeeping of a chain: auth_state.json, and login.json, which is a store as well.

The format is that of credentials/state.py. Links are named by fingerprints: which was followed by which,
which are dead, and which was sent without a verdict coming back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grok_oauth_proxy.moving.claims import MAX_TOKEN, fingerprint, moment
from grok_oauth_proxy.moving.document import PROVIDER, Document
from grok_oauth_proxy.moving.files import Json, read_json
from grok_oauth_proxy.moving.problems import Damaged

_VERSION = 1


@dataclass(frozen=True)
class Books:
    """What the file says; `content` is the file."""

    content: Json = field(repr=False)

    @property
    def tokens(self) -> Json | None:
        """The login it holds a copy of, or is the store of."""
        return tokens_of(self.content.get("tokens"))

    @property
    def link(self) -> str | None:
        tokens = self.tokens
        return fingerprint(tokens["refresh_token"]) if tokens else None

    @property
    def client_id(self) -> str | None:
        value = self.content.get("client_id")
        return value if isinstance(value, str) else None

    def newest(self, link: str) -> str:
        """The link at the end of the chain that leads from this one, as far as it is known."""
        successors = self.content["successors"]
        for _ in range(len(successors)):
            link = successors.get(link, link)
        return link

    def is_spent(self, link: str) -> bool:
        return self.newest(link) != link

    def verdict(self, link: str, client_id: str | None) -> str | None:
        """The error code that ended this link; invalid_client is bound to a client id."""
        error, _, of_client = self.content["dead"].get(link, "").partition(" ")
        return error if error and of_client in ("", client_id) else None

    def in_doubt(self, link: str) -> bool:
        """It was sent, and no verdict came back."""
        sending = self.content.get("sending")
        return isinstance(sending, dict) and sending.get("link") == link

    def without_login(self) -> Json:
        """The file without its login; what is known of links stays, so that no old copy is believed."""
        return {**self.content, "tokens": None, "client_id": None, "last_refresh": {}, "sending": None}


def read_books(path: Path) -> Books:
    """The file, or empty books when there is none; raise `Problem` (`Damaged` for the content)."""
    content = read_json(path)
    if content is None:
        return Books(_empty())
    mappings = [content.get("successors"), content.get("dead")]
    if content.get("version") != _VERSION or not all(_is_mapping(mapping) for mapping in mappings):
        raise Damaged(
            f"{path} has an unknown shape, so it can't be told which login is good. Use the release of "
            "grok-oauth-proxy that wrote it, or move the file away."
        )
    return Books(content)


def own_login(document: Document, before: Books) -> Json:
    """login.json for this login: its times from its claims, and what was known of links before."""
    tokens = document.tokens
    link = document.fingerprint
    return {
        **_empty(),
        "source": "own",
        "client_id": document.client_id,
        "tokens": {
            "access_token": tokens["access_token"],
            "refresh_token": tokens["refresh_token"],
            "id_token": tokens.get("id_token"),
            "token_type": tokens["token_type"],
            "expires_in": tokens.get("expires_in"),
            "issued_at": moment(tokens, "iat") or 0.0,
            "expires_at": moment(tokens, "exp"),
        },
        "successors": before.content["successors"],
        # What is left is a verdict on the client id, which may be another one now.
        "dead": {key: verdict for key, verdict in before.content["dead"].items() if key != link},
        "last_refresh": before.content.get("last_refresh", {}),
        "sending": before.content.get("sending"),
    }


def tokens_of(place: Any) -> Json | None:
    """The tokens at one place of a store, as a document has them; None when they can't be used."""
    if not isinstance(place, dict):
        return None
    access, refresh = visible(place.get("access_token")), refresh_text(place.get("refresh_token"))
    if not access or not refresh:
        return None
    tokens: Json = {"access_token": access, "refresh_token": refresh}
    if identity := visible(place.get("id_token")):
        tokens["id_token"] = identity
    tokens["token_type"] = visible(place.get("token_type")) or "Bearer"
    lifetime = place.get("expires_in")
    if isinstance(lifetime, int) and not isinstance(lifetime, bool) and 0 <= lifetime <= 10**9:
        tokens["expires_in"] = lifetime
    return tokens


def visible(value: object) -> str | None:
    """A text that may stand in a header: visible ASCII, as in credentials/hermes.py."""
    text = value.strip() if isinstance(value, str) else ""
    return text if text and all(0x21 <= ord(character) <= 0x7E for character in text) else None


def refresh_text(value: object) -> str | None:
    """A refresh token, if it is one: any printable text, as in credentials/token.py."""
    text = value.strip() if isinstance(value, str) else ""
    return text if text and text.isprintable() and len(text) <= MAX_TOKEN else None


def _empty() -> Json:
    return {
        "version": _VERSION,
        "provider": PROVIDER,
        "source": "hermes",
        "client_id": None,
        "tokens": None,
        "successors": {},
        "dead": {},
        "last_refresh": {},
        "sending": None,
    }


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
