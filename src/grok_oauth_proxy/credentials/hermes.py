"""Hermes Agent's auth.json, read and written as a good co-owner of the grant.

Law: while the chain lives in Hermes' store it is spent only under Hermes' own lock, the store is re-read
first, and the successor goes back to every place that held the spent token. Everything else in the file is
left as it was. In a version of the file that is not known there may be places that are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from grok_oauth_proxy.credentials.files import (
    LOCK_TIMEOUT,
    Fingerprint,
    is_there,
    locked,
    read_json,
    rehearse_write,
    stamp,
    unwritable,
    write_json,
)
from grok_oauth_proxy.credentials.messages import HERMES, OWN, Wording
from grok_oauth_proxy.credentials.token import Grant, read_token, refresh_text
from grok_oauth_proxy.errors import StoreProblem

PROVIDER = "xai-oauth"
_VERSION = 1
"""Hermes writes it into every store and reads stores without one."""
_SIGN_IN = f"Sign in with {HERMES.sign_in}, or with {OWN.sign_in}."


@dataclass(frozen=True, slots=True)
class HermesStore:
    """One auth file, or a profile's followed by the root store it falls back to."""

    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        return "hermes"

    @property
    def wording(self) -> Wording:
        return HERMES

    def lock(
        self, timeout: float = LOCK_TIMEOUT, *, needless: Callable[[], bool] | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Hermes' own lock of each store, the profile's first: the order Hermes takes them in."""
        locks = tuple(p.with_name("auth.lock") for p in self.paths if is_there(p.parent))
        return locked(locks, timeout, needless=needless)

    def read(self) -> list[Grant]:
        """Every xAI grant, most preferred first; raise `StoreProblem` when there is none.

        Codes: missing, unreadable, unsafe_link, corrupt, no_tokens.
        """
        problems: list[StoreProblem] = []
        for path in self.paths:
            try:
                grants = _grants(read_json(path))
            except StoreProblem as problem:
                # Signing in writes a store where there is none, or none that can be read; else it is no help.
                help_ = f" {_SIGN_IN}" if problem.code in ("missing", "corrupt") else ""
                problems.append(StoreProblem(problem.message + help_, code=problem.code))
                continue
            if grants:
                return grants
            problems.append(StoreProblem(f"{path} holds no xAI login. {_SIGN_IN}", code="no_tokens"))
        raise next((p for p in problems if p.code not in ("missing", "no_tokens")), problems[0])

    def rehearse(self) -> None:
        """Write as much as a write-back would, beside each store, and take it away again.

        Raises OSError, and `StoreProblem` (unknown_version) where a write-back might miss a copy of the link.
        """
        for path in self.paths:
            try:
                version = read_json(path).get("version", _VERSION)
            except StoreProblem:
                continue  # it holds no link
            _refuse_unknown(version, path)
            rehearse_write(path)

    def write_back(self, old: Grant, new: Grant) -> int:
        """Put `new` wherever `old` stands and return in how many places; hold the lock. Raises OSError.

        A store that does not hold `old` (any more) is not written at all. One in an unknown version is: what
        is spent already must not stand there.
        """
        written = 0
        for path in self.paths:
            try:
                store = read_json(path)
            except StoreProblem:
                continue
            if places := _replace(store, old, new):
                write_json(path, store)
                written += places
        return written

    def fingerprint(self) -> Fingerprint:
        """What changes whenever a store is written."""
        return tuple(stamp(path) for path in self.paths)

    def unwritable(self) -> Path | None:
        """The first store whose rotated tokens could not be written back, judged without writing."""
        for path in self.paths:
            if is_there(path) and unwritable(path, path.with_name("auth.lock")):
                return path
        return None


def _refuse_unknown(version: object, path: Path) -> None:
    if version == _VERSION:
        return
    named = f" (version {version})" if type(version) is int else ""
    raise StoreProblem(
        f"{path} has a format{named} that this proxy does not know. Its login is used but not refreshed "
        "here: a copy of it might be missed, and that would cost the login. Let Hermes refresh it, and "
        "update grok-oauth-proxy.",
        code="unknown_version",
    )


def _grants(store: dict[str, Any]) -> list[Grant]:
    found: dict[str, Grant] = {}
    for tokens in (_provider_tokens(store), *_pool(store)):
        if grant := _grant(tokens):
            found.setdefault(grant.fingerprint, grant)
    return list(found.values())


def _grant(tokens: dict[str, Any]) -> Grant | None:
    access, identity = _text(tokens, "access_token"), _text(tokens, "id_token")
    refresh = refresh_text(tokens.get("refresh_token"))
    if not access or not refresh:
        return None
    return Grant(
        token=read_token(access, id_token=identity),
        refresh_token=SecretStr(refresh),
        id_token=SecretStr(identity) if identity else None,
        token_type=_text(tokens, "token_type") or "Bearer",
    )


def _text(tokens: dict[str, Any], name: str) -> str | None:
    value = tokens.get(name)
    if not isinstance(value, str):
        return None
    value = value.strip()
    # What will stand in an HTTP header must be visible ASCII; anything else is not a token.
    return value if value and all(0x21 <= ord(character) <= 0x7E for character in value) else None


def _provider_tokens(store: dict[str, Any]) -> dict[str, Any]:
    block = _child(_child(store, "providers"), PROVIDER)
    return _child(block, "tokens")


def _child(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _pool(store: dict[str, Any]) -> Iterator[dict[str, Any]]:
    entries = _child(store, "credential_pool").get(PROVIDER)
    if isinstance(entries, list):
        yield from (entry for entry in entries if isinstance(entry, dict))


def _replace(store: dict[str, Any], old: Grant, new: Grant) -> int:
    spent = old.refresh_token.get_secret_value()
    refreshed_at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    places = 0
    tokens = _provider_tokens(store)
    mirrored = refresh_text(tokens.get("refresh_token")) == spent
    if mirrored:
        tokens |= _as_stored(new)
        store["providers"][PROVIDER]["last_refresh"] = refreshed_at
        places += 1
    for entry in _pool(store):
        # Hermes keeps `device_code` entries equal to the provider block: a stale mirror is renewed too.
        mirrors = mirrored and entry.get("source") == "device_code"
        if mirrors or refresh_text(entry.get("refresh_token")) == spent:
            entry["access_token"] = new.token.bearer.get_secret_value()
            entry["refresh_token"] = new.refresh_token.get_secret_value()
            entry["last_refresh"] = refreshed_at
            places += 1
    return places


def _as_stored(grant: Grant) -> dict[str, Any]:
    stored: dict[str, Any] = {
        "access_token": grant.token.bearer.get_secret_value(),
        "refresh_token": grant.refresh_token.get_secret_value(),
        "token_type": grant.token_type,
    }
    if grant.id_token:
        stored["id_token"] = grant.id_token.get_secret_value()
    if grant.expires_in is not None:
        stored["expires_in"] = grant.expires_in
    return stored
