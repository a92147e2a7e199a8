"""The chain of refresh tokens on disk: which link is ours to use, and where its copies stand.

Law: the shared store is the truth, unless it holds a link this proxy has spent; then the successor goes back
there. A successor counts as saved once the store or the state file has it. Nothing here does network I/O;
every method works on the disk and belongs into a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from grok_oauth_proxy.credentials.files import LOCK_TIMEOUT
from grok_oauth_proxy.credentials.messages import NOT_WRITTEN, Wording
from grok_oauth_proxy.credentials.state import Sending, State, StateFile
from grok_oauth_proxy.credentials.token import Grant, read_token
from grok_oauth_proxy.errors import StoreProblem
from grok_oauth_proxy.events import ChainAdopted, Observer, StoreTrouble

_SPENT: Final = "invalid_grant"
_WRONG_CLIENT: Final = "invalid_client"


class CredentialSource(Protocol):
    """Where the grant lives and who else may spend it: see `hermes.HermesStore` and `own.OwnStore`."""

    @property
    def name(self) -> str: ...
    @property
    def wording(self) -> Wording: ...
    def lock(
        self, timeout: float = LOCK_TIMEOUT, *, needless: Callable[[], bool] | None = None
    ) -> AbstractAsyncContextManager[None]: ...
    def read(self) -> list[Grant]: ...
    def rehearse(self) -> None: ...
    def write_back(self, old: Grant, new: Grant) -> int: ...
    def unwritable(self) -> Path | None: ...


class Chain:
    """The grant in use and its bookkeeping. One call at a time; a writing caller holds the store's lock.

    `client_id` is the one that was set, if any; else the login's own claims name it, or the state file does.
    """

    def __init__(
        self,
        source: CredentialSource,
        state_file: StateFile,
        observer: Observer,
        *,
        client_id: str | None = None,
    ) -> None:
        self.source = source
        self.grant: Grant | None = None
        self.state = State(source=source.name)
        self.behind = False
        """The store still holds a link that was spent here, because writing to it failed."""
        self._seen: set[str] = set()
        """The links the store held when it was last read."""
        self._foreign = False
        """What stands in the state file's place is not ours to overwrite."""
        self._told: str | None = None
        """What was last said about the state file."""
        self._client_id = client_id
        self._unsaved: tuple[Grant, Grant] | None = None
        self._state_file = state_file
        self._observer = observer

    @property
    def unfinished(self) -> bool:
        """Something that was decided is not on every disk where it belongs."""
        return self.behind or self._unsaved is not None

    @property
    def client_id(self) -> str | None:
        """The OAuth client that refreshes are made for."""
        return self._client_id or self._known_client_id

    @property
    def _known_client_id(self) -> str | None:
        """Whose client the login is: an own one was made for the client that is recorded."""
        claimed = self.grant.token.client_id if self.grant else None
        recorded = self.state.client_id
        return recorded or claimed if self.source.name == "own" else claimed or recorded

    @property
    def verdict(self) -> str | None:
        """Why the grant in use must not be sent: the error code that ended it, or None.

        None too for a link whose successor no disk took yet: it is spent, but the login is alive.
        """
        if self.grant is None or (self._unsaved and _same(self._unsaved[0], self.grant)):
            return None
        return self._verdict(self.grant)

    def forget(self) -> None:
        """The login was taken away on purpose."""
        self.grant, self.state = None, State(source=self.source.name, client_id=self.state.client_id)
        self._unsaved, self.behind, self._seen = None, False, set()

    def recall(self, *, repair: bool) -> None:
        """Merge what the state file knows: another proxy on the same file may have spent links too.

        `repair`, under the lock: a damaged file is set aside, and what is in memory takes its place.
        """
        try:
            known = self._state_file.load()
        except StoreProblem as problem:
            self._foreign = problem.code == "foreign"
            told = self._kept_aside(problem) if repair else problem.message
            if told != self._told:
                self._told = told
                self._observer(StoreTrouble(problem.code, told))
            # Only what was really set aside: it may have become good, or not be movable.
            aside = problem.code == "corrupt" and not self._state_file.path.exists()
            if repair and aside and self.state.grant is not None:
                self._save_state()
            return
        self._foreign, self._told = False, None
        if known is not None:
            self.state = known.merged(self.state)

    def _kept_aside(self, problem: StoreProblem) -> str:
        try:
            return self._state_file.set_aside_if_corrupt() or problem.message
        except StoreProblem as another:
            return another.message

    def lagging(self, grants: list[Grant]) -> list[tuple[Grant, Grant]]:
        """The links of a store, as just read, that are spent, each with its living successor."""
        return [
            (stored, ours)
            for stored in grants
            if (ours := self._current(stored)) and ours.fingerprint != stored.fingerprint
        ]

    def synchronise(self) -> None:
        """Bring store, state file and memory together. Raises `StoreProblem` when the store has no grant.

        A spent link in the store comes from a write that failed, a crash between two writes, or an old copy
        that was put back: its successor goes where it stands.
        """
        self.recall(repair=True)
        for stored, ours in self.lagging(self.source.read()):
            self._write_back(stored, ours)
        self.adopt(self.source.read())

    def look(self, *, save: bool) -> None:
        """Use what the store holds, without its lock. What is saved then may undo what others write."""
        self.recall(repair=False)
        self.adopt(self.source.read(), save=save)

    def adopt(self, grants: list[Grant], *, save: bool = True) -> None:
        """Use the most preferred grant that can still be sent; keep the state file in step."""
        self.behind = bool(self.lagging(grants))
        current = [ours for stored in grants if (ours := self._current(stored))]
        chosen = next((grant for grant in current if not self._verdict(grant)), None)
        chosen = chosen or next(iter(current), grants[0])
        if self._unsaved and chosen.fingerprint == self._unsaved[1].fingerprint:
            if all(grant.fingerprint != chosen.fingerprint for grant in grants):
                return  # it is used once a disk has it
            self._unsaved = None
        if self.grant is None or not _same(chosen, self.grant):
            adopted, self.grant = self.grant is not None, chosen
            if adopted:
                self._observer(ChainAdopted(self.source.name))
        if save:
            saved = self.state.grant
            self._supersede(saved, chosen, {grant.fingerprint for grant in grants})
            if saved is None or not _same(chosen, saved):
                self.state = replace(self.state, grant=chosen, client_id=self.client_id)
                self._save_state()

    def _supersede(self, before: Grant | None, chosen: Grant, stored: set[str]) -> None:
        """Remember a link that another owner replaced as spent, so that an old copy of it is not believed.

        That is: within one account a new link stands where the one in use is gone. Whoever puts another
        account's login back means it, and a second login that was there before is none's successor.
        """
        seen, self._seen = self._seen, stored
        # The one in use may be missing there for a time, when the store took no successor.
        if (
            before is None
            or before.fingerprint in stored | {chosen.fingerprint}
            or chosen.fingerprint in seen
        ):
            return
        # By their claims: our own copy of a token has the times of this machine's clock.
        one, other = (read_token(grant.token.bearer.get_secret_value()) for grant in (before, chosen))
        if one.subject is None or one.subject != other.subject or one.issued_at > other.issued_at:
            return
        if self._verdict(chosen) is None:
            self.state = self.state.after_rotation(before, chosen)

    @property
    def sent_at(self) -> float | None:
        """When (wall) the link in use was first sent without a verdict coming back; None when it was not."""
        sending = self.state.sending
        return sending.at if sending and self.grant and sending.link == self.grant.fingerprint else None

    def note_sending(self, grant: Grant, at: float) -> bool:
        """Save that the link is sent: whatever happens now, this process or the next must know.

        False, and not noted, when the disk did not take it.
        """
        before = self.state
        if self.sent_at is not None and self.sent_at <= at:
            return True
        self.state = replace(self.state, sending=Sending(grant.fingerprint, at))
        if self._save_state():
            return True
        self.state = before
        return False

    def note_unspent(self) -> None:
        """The answer says that the link was not spent."""
        self.state = replace(self.state, sending=None)
        self._save_state()

    def rehearse(self) -> bool:
        """Whether the store would take a successor, tried before the link is spent (a full disk, above all).

        A successor that only the state file takes would leave the store with a spent link for Hermes to send.
        """
        try:
            self.source.rehearse()
        except OSError:
            return False
        return True

    def advance(self, old: Grant, new: Grant) -> bool:
        """Save the successor of `old` and use it; False, and not used, when no disk took it."""
        written = self._write_back(old, new)
        self.state = self.state.after_rotation(old, new)
        if not (self._save_state() or written):
            self._unsaved = (old, new)
            return False
        self._unsaved = None
        self.grant = new
        self.behind = not written
        return True

    def save_leftovers(self) -> bool:
        """Try again to save a successor no disk took; its predecessor is spent. True when nothing is left."""
        if self._unsaved is None:
            return True
        old, new = self._unsaved
        try:
            held = self.source.read()
        except StoreProblem as problem:
            if problem.code == "foreign":
                return False
            if problem.code != "no_tokens":
                self.recall(repair=True)  # a damaged file is kept aside, not written over
                return self.advance(old, new)
            held = []
        if not any(self.state.newest(grant.fingerprint) == new.fingerprint for grant in held):
            # Somebody signed in anew, or out, meanwhile: nothing of theirs is written over. The spent link
            # may stand in a store behind theirs.
            try:
                self.source.write_back(old, new)
            except (OSError, StoreProblem):
                return False
            self._unsaved = None
            return True
        return self.advance(old, new)

    def bury(self, grant: Grant, error: str) -> None:
        """Never send this link again, not after a restart either; another client id may change a verdict."""
        # A login that is asked for as another client's may be called invalid as well (RFC 6749 §5.2).
        mistaken = error == _WRONG_CLIENT or self._client_id not in (None, self._known_client_id)
        verdict = f"{error} {self.client_id}" if mistaken else error
        self.state = self.state.after_death(grant.fingerprint, verdict)
        self._save_state()

    def _current(self, stored: Grant) -> Grant | None:
        """What to use instead of a link found in the store: itself, our successor of it, or nothing."""
        ours, newest = self.state.grant, self.state.newest(stored.fingerprint)
        if ours and newest == ours.fingerprint:
            # Our own copy knows the times by this machine's clock.
            same = stored.token.bearer == ours.token.bearer
            return ours if same or newest != stored.fingerprint else stored
        return stored if newest == stored.fingerprint else None

    def _verdict(self, grant: Grant) -> str | None:
        if self.state.newest(grant.fingerprint) != grant.fingerprint:
            return _SPENT
        error, _, client_id = self.state.dead.get(grant.fingerprint, "").partition(" ")
        return error if error and client_id in ("", self.client_id) else None

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
            return self.source.write_back(old, new) > 0
        except (OSError, StoreProblem, ValueError, RecursionError) as error:
            # Whatever it is, the successor must live: the last two are a store that cannot be encoded.
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            message = self.source.wording.say(NOT_WRITTEN, reason=reason)
            self._observer(StoreTrouble("store_not_written", message))
            self.behind = True
            return False

    def _save_state(self) -> bool:
        if self._foreign:
            return False
        try:
            self._state_file.save(self.state)
        except OSError as error:
            message = f"{self._state_file.path} could not be written: {error.strerror}."
            self._observer(StoreTrouble("state_not_written", message))
            return False
        return True


def _same(one: Grant, other: Grant) -> bool:
    return one.fingerprint == other.fingerprint and one.token.bearer == other.token.bearer
