"""The proxy's own state file: the grant in use, which links of the chain are spent, which are dead.

Hermes' store stays the truth while the grant lives there. This file is what makes a crash between two writes,
or a store that could not be written, recoverable: it knows the successor of a link the store still holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from grok_oauth_proxy.credentials.files import make_private, read_json, set_aside, write_json
from grok_oauth_proxy.credentials.token import Grant, read_token
from grok_oauth_proxy.errors import StoreProblem

_VERSION = 1
_PROVIDER = "xai-oauth"
_REMEMBERED = 64
"""How many links are remembered. An older copy of the store that is put back would be believed."""


@dataclass(frozen=True, slots=True)
class Sending:
    """A link that was sent without a verdict coming back, and when that was first: wall seconds."""

    link: str
    at: float


@dataclass(frozen=True, slots=True)
class State:
    """What the file holds. Links of the chain are named by their fingerprints, newest last in each mapping.

    `successors` maps a spent link to the one that took its place; `dead` maps a link to the verdict on it:
    invalid_grant, or invalid_client with the client id that was not accepted behind a blank.
    """

    source: str
    client_id: str | None = None
    grant: Grant | None = None
    successors: dict[str, str] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)
    last_refresh: dict[str, str | bool | None] = field(default_factory=dict)
    sending: Sending | None = None

    def newest(self, fingerprint: str) -> str:
        """The link at the end of the chain that leads from this one, as far as it is known."""
        for _ in range(len(self.successors)):
            fingerprint = self.successors.get(fingerprint, fingerprint)
        return fingerprint

    def after_rotation(self, old: Grant, new: Grant) -> State:
        if old.fingerprint == new.fingerprint:
            return replace(self, grant=new, sending=None)
        successors = _newest_last(self.successors, {old.fingerprint: new.fingerprint})
        return replace(self, grant=new, successors=successors, sending=None)

    def after_death(self, fingerprint: str, verdict: str) -> State:
        return replace(self, dead=_newest_last(self.dead, {fingerprint: verdict}))

    def merged(self, memory: State) -> State:
        """This state, as read from disk, with what a running proxy knows beyond it."""
        successors = _newest_last(self.successors, memory.successors)
        # In the own login's file no grant means that somebody logged out.
        gone = self.grant is None and self.source == "own"
        ahead = not gone and (self.grant is None or self.grant.fingerprint in memory.successors)
        return replace(
            self,
            source=memory.source,
            grant=memory.grant if memory.grant and ahead else self.grant,
            successors=successors,
            dead=_newest_last(self.dead, memory.dead),
            last_refresh=memory.last_refresh or self.last_refresh,
        )


def _newest_last(older: dict[str, str], newer: dict[str, str]) -> dict[str, str]:
    merged = {**{key: older[key] for key in older if key not in newer}, **newer}
    return dict(list(merged.items())[-_REMEMBERED:])


@dataclass(frozen=True, slots=True)
class StateFile:
    """auth_state.json: mode 0600 in a directory of mode 0700."""

    path: Path

    def prepare(self) -> list[str]:
        """Make the directory and repair permissions before anything is read; returns what was repaired.

        A directory that is not named grok-oauth-proxy may hold other people's files and is left alone.
        Raises `StoreProblem`.
        """
        directory, repaired = self.path.parent, []
        try:
            if self.path.is_dir():
                raise StoreProblem(
                    f"{self.path} is a folder. Set GROK_PROXY_AUTH_STATE to a file in it.",
                    code="state_unusable",
                )
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            candidates = [directory] if directory.name == "grok-oauth-proxy" else []
            for path in (*candidates, self.path):
                if path.exists() and make_private(path):
                    repaired.append(f"{path} was open to other users and is now private.")
        except OSError as error:
            raise StoreProblem(
                f"The state folder {directory} cannot be used: {error.strerror}. "
                "Make it writable, or set GROK_PROXY_AUTH_STATE to another file.",
                code="state_unusable",
            ) from None
        return repaired

    def load(self) -> State | None:
        """The state, or None when there is no file; raise `StoreProblem` (unreadable, corrupt)."""
        try:
            content = read_json(self.path)
        except StoreProblem as problem:
            if problem.code == "missing":
                return None
            raise
        try:
            return _decode(content)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            if not content or (content.get("provider"), content.get("version")) == (_PROVIDER, _VERSION):
                raise StoreProblem(f"{self.path} has an unknown shape.", code="corrupt") from None
            raise StoreProblem(
                f"{self.path} is no state file of this version, and is left as it is. Move it away, or set "
                "GROK_PROXY_AUTH_STATE to another file.",
                code="foreign",
            ) from None

    def set_aside_if_corrupt(self) -> str | None:
        """Keep a damaged file under another name, so that it is never overwritten; says so, or None."""
        try:
            self.load()
        except StoreProblem as problem:
            if problem.code != "corrupt":
                raise
            try:
                kept = set_aside(self.path)
            except OSError as error:
                raise StoreProblem(
                    f"{problem.message} It cannot be set aside: {error.strerror}.", code="state_unusable"
                ) from None
            return f"{problem.message} It is kept as {kept}; the next one is new."
        return None

    def save(self, state: State) -> None:
        """Write it, on disk when this returns. Raises OSError."""
        write_json(self.path, _encode(state))


def _encode(state: State) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "provider": _PROVIDER,
        "source": state.source,
        "client_id": state.client_id,
        "tokens": _encode_grant(state.grant) if state.grant else None,
        "successors": state.successors,
        "dead": state.dead,
        "last_refresh": state.last_refresh,
        "sending": {"link": state.sending.link, "at": state.sending.at} if state.sending else None,
    }


def _encode_grant(grant: Grant) -> dict[str, Any]:
    return {
        "access_token": grant.token.bearer.get_secret_value(),
        "refresh_token": grant.refresh_token.get_secret_value(),
        "id_token": grant.id_token.get_secret_value() if grant.id_token else None,
        "token_type": grant.token_type,
        "expires_in": grant.expires_in,
        "issued_at": grant.token.issued_at,
        "expires_at": grant.token.expires_at,
    }


def _decode(content: dict[str, Any]) -> State:
    if content["version"] != _VERSION:
        raise ValueError("unknown version")
    tokens, sending = content["tokens"], content.get("sending")
    return State(
        source=_text(content["source"]),
        client_id=_optional_text(content["client_id"]),
        grant=_decode_grant(tokens) if tokens is not None else None,
        successors=_mapping(content["successors"]),
        dead=_mapping(content["dead"]),
        last_refresh={key: _plain(value) for key, value in content["last_refresh"].items()},
        sending=Sending(_text(sending["link"]), _moment(sending["at"])) if sending else None,
    )


def _decode_grant(tokens: dict[str, Any]) -> Grant:
    identity = _optional_text(tokens["id_token"])
    expires_in, expires_at = tokens["expires_in"], tokens["expires_at"]
    return Grant(
        token=replace(
            read_token(_text(tokens["access_token"]), id_token=identity),
            issued_at=_moment(tokens["issued_at"]),
            expires_at=None if expires_at is None else _moment(expires_at),
        ),
        refresh_token=SecretStr(_text(tokens["refresh_token"])),
        id_token=SecretStr(identity) if identity else None,
        token_type=_text(tokens["token_type"]),
        expires_in=None if expires_in is None else int(expires_in),
    )


def _mapping(value: dict[str, object]) -> dict[str, str]:
    return {_text(key): _text(item) for key, item in value.items()}


def _moment(value: float) -> float:
    if not 0 <= value < 1e11:
        raise ValueError("no moment in time")
    return float(value)


def _plain(value: object) -> str | bool | None:
    if value is not None and not isinstance(value, str | bool):
        raise TypeError("plain value expected")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)
