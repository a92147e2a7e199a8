"""xAI's places in Hermes' auth.json, as JSON: found, filled and emptied; nothing else in the file changes.

`providers["xai-oauth"]` is preferred, as Hermes does; entries of the pool with the source `device_code`
mirror it, all others are logins of their own. The shapes are those of Hermes 0.19.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from grok_oauth_proxy.moving.books import tokens_of
from grok_oauth_proxy.moving.claims import fingerprint
from grok_oauth_proxy.moving.document import PROVIDER, Document
from grok_oauth_proxy.moving.files import Json
from grok_oauth_proxy.moving.problems import Problem

_MIRROR = "device_code"
_NOTES = ("last_status", "last_status_at", "last_error_code", "last_error_reason", "last_error_message",
          "last_error_reset_at")  # fmt: skip

MOVED = "This login was moved to another machine by grok-oauth-proxy. Sign in again to use one here."
IMPORTED = "This login was imported by grok-oauth-proxy; it stands among the providers now."


def logins(store: Json) -> list[Json]:
    """The tokens of every login in the store, the most preferred first."""
    return [tokens for place in _places(store) if (tokens := tokens_of(place))]


def block_login(store: Json) -> Json | None:
    """The login that `put` would replace."""
    return tokens_of(_child(_block(store), "tokens"))


def token_endpoint(store: Json) -> object:
    """Where Hermes refreshes this login; whether tokens may go there is not said."""
    return _child(_block(store), "discovery").get("token_endpoint")


def new_store() -> Json:
    """What Hermes writes where nobody has signed in before."""
    return {"version": 1, "providers": {}, "active_provider": PROVIDER}


def put(store: Json, document: Document, path: Path) -> None:
    """Make this the store's login, as if a person had signed in with `hermes model`."""
    providers = store.setdefault("providers", {})
    if not isinstance(providers, dict):
        raise Problem(f"{path} is damaged: its providers are no JSON object. Repair it or move it away.")
    block = dict(_block(store))
    block["tokens"] = dict(document.tokens)
    block["last_refresh"] = _now().replace("+00:00", "Z")
    block["auth_mode"] = "oauth_device_code"
    if _child(block, "discovery").get("token_endpoint") != document.token_endpoint:
        block["discovery"] = {"token_endpoint": document.token_endpoint}
    block.pop("last_auth_error", None)
    providers[PROVIDER] = block
    for entry in _pool(store):
        if entry.get("source") == _MIRROR:
            entry["access_token"] = document.tokens["access_token"]
            entry["refresh_token"] = document.tokens["refresh_token"]
            entry["last_refresh"] = block["last_refresh"]
            entry.update({name: None for name in _NOTES if name in entry})
    _show_again(store)


def take_out(store: Json, leads_to_it: Callable[[str], bool], why: str) -> int:
    """Empty every place with a link for which `leads_to_it` holds; return how many there were.

    Places are emptied and not removed: a Hermes session that still holds the link in memory looks at its
    place before it spends the link, and would spend it if there was none.
    """
    emptied = 0
    block_tokens = _child(_block(store), "tokens")
    in_block = _holds(block_tokens, leads_to_it)
    for entry in _pool(store):
        if _holds(entry, leads_to_it) or (in_block and entry.get("source") == _MIRROR):
            entry.update({"access_token": "", "refresh_token": None, "last_status": "dead"})
            entry.update(
                {"last_status_at": datetime.now(timezone.utc).timestamp(), "last_error_reason": "moved"}
            )
            entry["last_error_message"] = why
            emptied += 1
    if in_block:
        for name in ("access_token", "refresh_token", "id_token", "expires_in"):
            block_tokens.pop(name, None)
        _block(store)["last_auth_error"] = {
            "provider": PROVIDER,
            "code": "moved",
            "message": why,
            "reason": "moved",
            "relogin_required": True,
            "at": _now(),
        }
        emptied += 1
    return emptied


def _holds(place: Json, leads_to_it: Callable[[str], bool]) -> bool:
    tokens = tokens_of(place)
    return tokens is not None and leads_to_it(fingerprint(tokens["refresh_token"]))


def _places(store: Json) -> Iterator[Json]:
    yield _child(_block(store), "tokens")
    yield from _pool(store)


def _block(store: Json) -> Json:
    return _child(_child(store, "providers"), PROVIDER)


def _pool(store: Json) -> Iterator[Json]:
    entries = _child(store, "credential_pool").get(PROVIDER)
    if isinstance(entries, list):
        yield from (entry for entry in entries if isinstance(entry, dict))


def _child(parent: Json, name: str) -> Json:
    value: Any = parent.get(name)
    return value if isinstance(value, dict) else {}


def _show_again(store: Json) -> None:
    """Take back `hermes auth remove`, which hides the block from the pool until the next login."""
    suppressed = _child(store, "suppressed_sources")
    sources = suppressed.get(PROVIDER)
    if not isinstance(sources, list) or _MIRROR not in sources:
        return
    sources.remove(_MIRROR)
    if not sources:
        del suppressed[PROVIDER]
    if not suppressed:
        del store["suppressed_sources"]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()
