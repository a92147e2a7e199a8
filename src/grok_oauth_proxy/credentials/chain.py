"""The chain of refresh tokens on disk: which link is ours to use, and where its copies stand.

Law: the shared store is the truth, unless it holds a link this proxy has spent; then the successor goes back
there. A successor counts as saved once the store or the state file has it. Nothing here does network I/O;
every method works on the disk and belongs into a thread.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from grok_oauth_proxy.credentials.state import State, StateFile
from grok_oauth_proxy.credentials.token import Grant
from grok_oauth_proxy.errors import StoreProblem
from grok_oauth_proxy.events import ChainAdopted, Observer, StoreTrouble


class CredentialSource(Protocol):
    """Where the grant lives and who else may spend it: see `hermes.HermesStore`."""

    @property
    def name(self) -> str: ...
    def lock(self) -> AbstractAsyncContextManager[None]: ...
    def read(self) -> list[Grant]: ...
    def write_back(self, old: Grant, new: Grant) -> int: ...
    def unwritable(self) -> Path | None: ...


class Chain:
    """The grant in use and its bookkeeping. One call at a time; a writing caller holds the store's lock."""

    def __init__(self, source: CredentialSource, state_file: StateFile, observer: Observer) -> None:
        self.source = source
        self.grant: Grant | None = None
        self.state = State(source=source.name)
        self.behind = False
        """The store still holds a link that was spent here, because writing to it failed."""
        self._unsaved: tuple[Grant, Grant] | None = None
        self._state_file = state_file
        self._observer = observer

    @property
    def unfinished(self) -> bool:
        """Something that was decided is not on every disk where it belongs."""
        return self.behind or self._unsaved is not None

    @property
    def is_dead(self) -> bool:
        return self.grant is not None and self.grant.fingerprint in self.state.dead

    def recall(self) -> None:
        """Merge what the state file knows: another proxy on the same file may have spent links too."""
        try:
            known = self._state_file.load()
        except StoreProblem as problem:
            self._observer(StoreTrouble(problem.code, problem.message))
            return
        if known is not None:
            self.state = known.merged(self.state)

    def lags(self, grants: list[Grant]) -> bool:
        """True when the store, as just read, holds a link that is spent."""
        return any(grant.fingerprint in self.state.spent for grant in grants)

    def synchronise(self) -> None:
        """Bring store, state file and memory together. Raises `StoreProblem` when the store has no grant."""
        self.recall()
        ours = self.state.grant
        for stored in self.source.read():
            # A write that failed, a crash between two writes, or an old copy that was put back.
            if ours and self.lags([stored]) and ours.fingerprint != stored.fingerprint:
                self._write_back(stored, ours)
        self.adopt(self.source.read())

    def adopt(self, grants: list[Grant]) -> None:
        """Use the most preferred grant that is neither dead nor spent; keep the state file in step."""
        unusable = {*self.state.spent, *self.state.dead}
        candidates = [*grants, self.state.grant] if self.state.grant else grants
        chosen = next((grant for grant in candidates if grant.fingerprint not in unusable), grants[0])
        if self.grant and _same(chosen, self.grant):
            return
        if self.grant is not None:
            self._observer(ChainAdopted(self.source.name))
        self.grant = chosen
        if self.state.grant is None or not _same(chosen, self.state.grant):
            self.state = replace(self.state, grant=chosen, client_id=chosen.token.client_id)
            self._save_state()

    def advance(self, old: Grant, new: Grant) -> bool:
        """Save the successor of `old` and use it; False, and not used, when no disk took it."""
        written = self._write_back(old, new)
        self.state = self.state.after_rotation(old, new)
        if not (self._save_state() or written):
            self._unsaved = (old, new)
            return False
        self._unsaved = None
        self.grant = new
        return True

    def save_leftovers(self) -> bool:
        """Try again to save a successor no disk took; its predecessor is spent. True when nothing is left."""
        return self._unsaved is None or self.advance(*self._unsaved)

    def bury(self, grant: Grant) -> None:
        """Never send this link again, not after a restart either."""
        self.state = self.state.after_death(grant.fingerprint)
        self._save_state()

    def note_refresh(self, at: float, error_class: str | None, *, rotated: bool) -> None:
        """Remember how the last refresh went; it reaches the disk with the next write."""
        stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self.state = replace(
            self.state,
            last_refresh={
                "last_refresh_at": stamp,
                "last_refresh_status": "failure" if error_class else "success",
                "last_refresh_error_class": error_class,
                "refresh_token_rotated": rotated,
            },
        )

    def _write_back(self, old: Grant, new: Grant) -> bool:
        try:
            self.behind = False
            return self.source.write_back(old, new) > 0
        except OSError as error:
            self.behind = True
            self._observer(StoreTrouble("store_not_written", f"{error.strerror}: {error.filename}"))
            return False

    def _save_state(self) -> bool:
        try:
            self._state_file.save(self.state)
        except OSError as error:
            message = f"{self._state_file.path} could not be written: {error.strerror}."
            self._observer(StoreTrouble("state_not_written", message))
            return False
        return True


def _same(one: Grant, other: Grant) -> bool:
    return one.fingerprint == other.fingerprint and one.token.bearer == other.token.bearer
