"""The login this proxy made itself: one file, store and bookkeeping in one.

Law: nobody but this proxy's processes on this machine refreshes it, under a lock of its own; nothing of
Hermes' is read or written for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from grok_oauth_proxy.credentials.files import (
    LOCK_TIMEOUT,
    Fingerprint,
    is_there,
    locked,
    rehearse_write,
    stamp,
    unwritable,
)
from grok_oauth_proxy.credentials.messages import OWN, Wording
from grok_oauth_proxy.credentials.state import State, StateFile
from grok_oauth_proxy.credentials.token import Grant
from grok_oauth_proxy.errors import StoreProblem


@dataclass(frozen=True, slots=True)
class OwnStore:
    """A credential source: see `chain.CredentialSource`. The chain's state file is the same file."""

    file: StateFile

    @classmethod
    def beside(cls, state: Path) -> OwnStore:
        """The own login of the proxy whose state file this is."""
        return cls(StateFile(state.with_name("login.json")))

    @property
    def name(self) -> str:
        return "own"

    @property
    def wording(self) -> Wording:
        return OWN

    def lock(
        self, timeout: float = LOCK_TIMEOUT, *, needless: Callable[[], bool] | None = None
    ) -> AbstractAsyncContextManager[None]:
        """See `files.locked`."""
        return locked((self._lock,), timeout, needless=needless)

    @property
    def _lock(self) -> Path:
        return self.file.path.with_name("login.lock")

    def is_there(self) -> bool:
        """Whether there is such a login at all, good or not."""
        try:
            self.read()
        except StoreProblem as problem:
            return problem.code not in ("missing", "no_tokens")
        return True

    def read(self) -> list[Grant]:
        """The one grant; raise `StoreProblem` (missing, unreadable, corrupt, no_tokens)."""
        state = self.file.load()
        if state is None or state.grant is None:
            raise StoreProblem(
                f"{self.file.path} holds no login of the proxy's own. Sign in with {OWN.sign_in}.",
                code="missing" if state is None else "no_tokens",
            )
        return [state.grant]

    def holder(self) -> tuple[Grant, str | None]:
        """The grant and the OAuth client it belongs to; raises as `read` does."""
        (grant,), state = self.read(), self.file.load()
        return grant, (state.client_id if state else None) or grant.token.client_id

    def rehearse(self) -> None:
        """Write as much as a write-back would, and take it away again. Raises OSError."""
        rehearse_write(self.file.path)

    def write_back(self, old: Grant, new: Grant) -> int:
        """Put `new` in the place of `old`, 1 if that was there; hold the lock. Raises OSError."""
        state = self.file.load()
        if state is None or state.grant is None or state.grant.fingerprint != old.fingerprint:
            return 0
        self.file.save(state.after_rotation(old, new))
        return 1

    def replace(self, grant: Grant, client_id: str) -> None:
        """Begin anew with another login; hold the lock. Raises OSError."""
        self.file.save(State(self.name, client_id=client_id, grant=grant))

    def clear(self) -> None:
        """Forget the login, but not which OAuth client it was of; hold the lock. Raises OSError."""
        try:
            state = self.file.load()
        except StoreProblem:
            state = None
        self.file.save(State(self.name, client_id=state.client_id if state else None))

    def fingerprint(self) -> Fingerprint:
        """What changes whenever the file is written."""
        return (stamp(self.file.path),)

    def unwritable(self) -> Path | None:
        """The file, if a rotated login could not be saved to it, judged without writing."""
        path = self.file.path
        return path if is_there(path) and unwritable(path, self._lock) else None
