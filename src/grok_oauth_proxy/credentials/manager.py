"""The keeper of the grant. Callers say `await tokens.get()` and nothing else.

Law: one refresh at a time; it runs in a task of its own that no caller can cancel; the successor is on disk
before anybody is given it; a dead link is never sent again.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

from grok_oauth_proxy.bugs import log_bug
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials import doubt
from grok_oauth_proxy.credentials.at_hand import TokensAtHand
from grok_oauth_proxy.credentials.chain import Chain
from grok_oauth_proxy.credentials.history import RefreshHistory
from grok_oauth_proxy.credentials.messages import (
    ANSWER_LOST,
    BEHIND,
    BLOCKED,
    DOUBTFUL,
    EXPIRED_REPLY,
    LOGGED_OUT,
    LOST,
    NO_ROOM,
    NOBODY,
    NOT_NOTED,
    READ_ONLY,
    TRANSIENT,
    UNSAVED,
    WAY_OUT,
)
from grok_oauth_proxy.credentials.oauth import NotEntitled, Outcome, Refreshed, Refresher, Terminal, Transient
from grok_oauth_proxy.credentials.status import CredentialStatus
from grok_oauth_proxy.credentials.store_lock import StoreLock
from grok_oauth_proxy.credentials.token import Grant, Token
from grok_oauth_proxy.errors import StoreProblem
from grok_oauth_proxy.events import Observer, RefreshFailed, RefreshSucceeded, StoreTrouble

_DOUBT = "link_in_doubt"


class TokenManager:
    """Keeps one grant alive. All calls belong on one event loop."""

    def __init__(
        self, chain: Chain, server: Refresher, *, window: float, observer: Observer, clock: Clock
    ) -> None:
        self._chain = chain
        self._say = chain.source.wording.say
        self._server = server
        self._window = window
        self._observer = observer
        self._clock = clock
        self._refreshing: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[bool] | None = None
        self.at_hand = TokensAtHand(lambda: self._token, window=window, clock=clock)
        self._history = RefreshHistory(clock)
        self._unreadable: RefreshFailed | None = None
        """The store changed into something that can't be used."""
        self._changed = asyncio.Event()
        self._disk = asyncio.Lock()
        self._lock = StoreLock(chain)
        self._closing = False

    def __repr__(self) -> str:
        return f"TokenManager(source={self._chain.source.name!r}, {self._history})"

    @property
    def source(self) -> str:
        """Where the login lives: own or hermes."""
        return self._chain.source.name

    @property
    def client_id(self) -> str | None:
        """The OAuth client that refreshes are made for: the setting, else what the login's claims say."""
        return self._chain.client_id

    @property
    def holds_login(self) -> bool:
        """There is a login, good or not."""
        return self._chain.grant is not None

    @property
    def dead(self) -> bool:
        """There is no login that could be refreshed: only another one helps."""
        return not self.holds_login or self.client_id is None or self._chain.verdict is not None

    # What callers use.

    async def start(self) -> None:
        """Import the grant; raise `StoreProblem` when there is none."""
        await self.reload()
        if (path := self._chain.source.unwritable()) is not None:
            self._observer(StoreTrouble("store_read_only", self._say(READ_ONLY, path=path)))

    def check_client(self) -> None:
        """Raise `StoreProblem` where nothing names the OAuth client, without which there is no refresh."""
        if self.client_id is None:
            raise StoreProblem(self._say(BLOCKED["no_client_id"]), code="no_client_id")

    async def get(self, *, refused: Token | None = None, at_least: float = 0.0) -> Token:
        """A token with more than `at_least` seconds left, that is not `refused`, the one the API refused.

        `at_least` is bounded by the token's own refresh window. Waits for a refresh only when there is no
        such token; raises `CredentialsUnavailable` when it gave none.
        """
        token = self.at_hand.usable(refused, at_least)
        # Twice at most: the first refresh may have been another caller's, begun before `refused` was known.
        for _ in range(2):
            if token is not None:
                return token
            await self._refresh(refused)
            token = self.at_hand.usable(refused, at_least) or self.at_hand.usable(refused, 0.0)
        if token is not None:
            return token
        problem = self._history.problem
        if refused is not None and problem and problem.reason == "invalid_grant":
            self.at_hand.note_useless(refused)
        raise self._history.unavailable()

    async def refresh_ahead(self) -> None:
        """What the prewarm task does when `seconds_until_due` has passed; failures are kept, not raised."""
        if self.seconds_until_due() <= 0:
            await self._refresh(None)
        self._tell_standing()

    async def reload(self) -> bool:
        """The store changed: adopt what it holds. Raises `StoreProblem`; what is in use stays in use.

        False when somebody else has its lock, so that the state file is not in step yet.
        """
        # In a task of its own: who waits may be cancelled while a thread writes under the lock.
        self._reloading = asyncio.create_task(self._reload(), name="store-reload")
        try:
            settled = await asyncio.shield(self._reloading)
        except StoreProblem as problem:
            self._unreadable = RefreshFailed(problem.code, problem.message, terminal=False)
            raise
        self._unreadable = None
        return settled

    async def _reload(self) -> bool:
        async with self._disk:
            before = self._chain.grant  # not sooner: a refresh that was waited for is no change of the store
            settled = await self._look()
        if self._chain.grant != before:
            self.at_hand.forget_the_old()
            self._heal()
            self._changed.set()
        self._tell_standing()
        return settled

    async def _look(self) -> bool:
        read_only = self._chain.source.unwritable() is not None
        if not read_only:
            try:
                async with self._lock.held(timeout=0):
                    await asyncio.to_thread(self._chain.synchronise)
            except StoreProblem as problem:
                if not problem.code.startswith("lock_"):
                    raise
            else:
                return True
        # Whoever has the lock may have it for long, and what can be read already is of use.
        await asyncio.to_thread(self._chain.look, save=read_only)
        return read_only

    def forget(self) -> None:
        """Somebody logged out: what is in use is given up."""
        if self.holds_login and not self._chain.unfinished:
            self._chain.forget()
            self.at_hand.forget_the_old()
            self._history.stands(RefreshFailed("logged_out", self._say(LOGGED_OUT), terminal=True))

    def seconds_until_due(self) -> float:
        """Seconds until a refresh (or another try at one) is due; infinite when only the store can help."""
        token = self._token
        if token is None or self._history.dead:
            return math.inf
        due = 0.0
        if not self._chain.unfinished:
            due = doubt.seconds_until_due(
                token,
                sent_at=self._chain.sent_at,
                now=self._clock.wall(),
                window=self._window,
                worthless=self.at_hand.is_worthless(token),
            )
        return max(due, self._history.pause)

    def wake(self) -> None:
        """Somebody who waits for a change should look again."""
        self._changed.set()

    async def wait_for_change(self, timeout: float) -> None:
        """Return when the grant changed or a refresh ended, at the latest after `timeout` seconds."""
        self._changed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout)

    def status(self) -> CredentialStatus:
        token = self._token
        remaining = token.remaining(self._clock.wall()) if token else -math.inf
        problem = self._history.problem or self._unreadable
        refused = token is not None and problem is not None and self.at_hand.is_worthless(token)
        return CredentialStatus(
            source=self._chain.source.name,
            owner=self._chain.source.wording.owner if token else NOBODY,
            tier=token.tier if token else None,
            principal_type=token.principal_type if token else None,
            token_endpoint=self._server.token_endpoint,
            expires_at=token.expires_at if token else None,
            seconds_to_expiry=remaining if math.isfinite(remaining) else None,
            usable=self.at_hand.usable(None, 0.0) is not None and not refused,
            problem=problem,
            last_refresh=self._chain.state.last_refresh,
            successes=self._history.successes,
            failures=self._history.failures,
        )

    async def aclose(self) -> None:
        """Let a refresh in flight end: a rotation cut half-way would lose the grant."""
        self._closing = True
        if running := [task for task in (self._refreshing, self._reloading) if task]:
            await asyncio.wait(running)
        if self._chain.unfinished:
            with suppress(StoreProblem):
                async with self._lock.held():
                    await asyncio.to_thread(self._chain.save_leftovers)
        await self._lock.give_back()
        if self._chain.unfinished:
            self._observer(StoreTrouble("not_saved", self._say(LOST)))

    # Single flight.

    @property
    def _token(self) -> Token | None:
        return self._chain.grant.token if self._chain.grant else None

    @property
    def _in_doubt(self) -> bool:
        return doubt.in_doubt(self._chain.sent_at, self._clock.wall())

    async def _refresh(self, refused: Token | None) -> None:
        # One that runs is waited for even after its try has failed: only at its end is the verdict on the
        # disk, and has the store been looked at once more.
        if self._refreshing is None:
            if self._history.blocked:
                return
            self._refreshing = asyncio.create_task(self._run_refresh(refused), name="token-refresh")
        await asyncio.shield(self._refreshing)

    async def _run_refresh(self, refused: Token | None) -> None:
        try:
            # Before the lock: Hermes gives up waiting for it after 15 s.
            await self._server.discover()
            await self._transaction(refused)
        except StoreProblem as problem:
            if problem.code != "lock_busy" or not self._is_needless(refused):
                self._fail(RefreshFailed(problem.code, problem.message, terminal=False))
        except Exception as error:  # noqa: BLE001 - the link may be spent: no other try without a pause
            log_bug("A refresh failed.", error)
            reason = "internal_error"
            self._fail(RefreshFailed(reason, self._say(TRANSIENT, reason=reason), terminal=False))
        finally:
            self._refreshing = None
            self._changed.set()

    def _is_needless(self, refused: Token | None) -> bool:
        """Another owner has renewed the grant meanwhile, or this process ends before it has begun."""
        return self._closing or not (self.at_hand.is_stale(refused) or self._chain.unfinished)

    # One refresh, under the lock of whoever shares the grant.

    async def _transaction(self, refused: Token | None) -> None:
        chain = self._chain
        if (store := chain.source.unwritable()) is not None:
            async with self._disk:
                await self._save_leftovers()
                await asyncio.to_thread(lambda: chain.adopt(chain.source.read()))
            if self.at_hand.is_stale(refused):
                raise StoreProblem(self._say(READ_ONLY, path=store), code="store_read_only")
        else:
            # The disk is free while this waits: what others write meanwhile is used.
            async with self._lock.held(needless=lambda: self._is_needless(refused)), self._disk:
                await self._save_leftovers()
                await self._rotate(refused)
        if chain.behind:
            raise StoreProblem(self._say(BEHIND), code="store_not_written")
        if not self.at_hand.is_stale(refused):
            self._heal()
        self._tell_standing()

    async def _save_leftovers(self) -> None:
        if not await asyncio.to_thread(self._chain.save_leftovers):
            raise StoreProblem(self._say(UNSAVED), code="not_saved")

    async def _rotate(self, refused: Token | None) -> None:
        """Adopt what others wrote; spend the link only if that gave no good token."""
        chain = self._chain
        await asyncio.to_thread(chain.synchronise)
        while chain.grant and self.at_hand.is_stale(refused) and not chain.verdict:
            # While its link is in doubt, the token is used up first, even where a path refuses it.
            if self._in_doubt and self.at_hand.is_of_use(chain.grant.token):
                raise StoreProblem(self._say(DOUBTFUL), code=_DOUBT)
            if not await asyncio.to_thread(chain.rehearse):
                raise StoreProblem(self._say(NO_ROOM), code="store_not_writable")
            if not await self._spend(chain.grant, ahead=refused is None):
                return
            # Terminal: a sibling may have rotated outside the lock, so the store is read again
            # before the verdict is believed (facts: OAuth server).
            await asyncio.to_thread(chain.synchronise)

    async def _spend(self, grant: Grant, *, ahead: bool) -> bool:
        """Send the refresh token once; True when the verdict was terminal and the store wants a look.

        `ahead`: the API has not refused the access token, which may serve on for a moment.
        """
        if (client_id := self.client_id) is None:
            self._fail(RefreshFailed("no_client_id", self._say(BLOCKED["no_client_id"]), terminal=True))
            return False
        first = self._chain.sent_at is None
        match await self._send(grant, client_id):
            case Refreshed(renewed, rotated):
                if ahead:
                    # Before the new token can be seen, which happens in another thread.
                    self.at_hand.keep_for_a_moment(grant.token)
                await self._publish(grant, renewed, rotated=rotated)
            case Terminal(error):
                message = ANSWER_LOST if error == "invalid_grant" and not first else BLOCKED[error]
                self._fail(RefreshFailed(error, self._say(message), terminal=True))
                await asyncio.to_thread(self._chain.bury, grant, error)
                return True
            case NotEntitled():
                if first:
                    await asyncio.to_thread(self._chain.note_unspent)
                self._fail(RefreshFailed("not_entitled", self._say(BLOCKED["not_entitled"]), terminal=True))
            case Transient() as failure:
                if first and not failure.may_have_spent:
                    await asyncio.to_thread(self._chain.note_unspent)
                message = WAY_OUT.get(failure.reason) or self._say(TRANSIENT, reason=failure.reason)
                self._fail(RefreshFailed(failure.reason, message, terminal=False), failure.retry_after)
        return False

    async def _send(self, grant: Grant, client_id: str) -> Outcome:
        """Send the link, which is noted on the disk before; a failure over a suspend is told as one."""
        noted = await asyncio.to_thread(self._chain.note_sending, grant, self._clock.wall())
        if not noted and self.at_hand.is_of_use(grant.token):
            raise StoreProblem(self._say(NOT_NOTED), code="state_not_writable")
        before = self._clock.wall() - self._clock.monotonic()
        outcome = await self._server.refresh(grant, client_id)
        slept = doubt.has_slept(before, self._clock.wall() - self._clock.monotonic())
        if slept and isinstance(outcome, Transient):
            # Nobody knows how long ago it was sent.
            await asyncio.to_thread(self._chain.note_sending, grant, 0.0)
            return Transient("suspended")
        return outcome

    async def _publish(self, old: Grant, new: Grant, *, rotated: bool) -> None:
        self._chain.note_refresh(self._clock.wall(), None, rotated=rotated)
        if not await asyncio.to_thread(self._chain.advance, old, new):
            raise StoreProblem(self._say(UNSAVED), code="not_saved")
        self._history.succeeded()
        self._heal()
        self._observer(RefreshSucceeded(rotated=rotated, lifetime=new.token.lifetime))
        if self.at_hand.is_stale(None):
            # Spending link after link would not help: the clocks or the server are wrong.
            self._fail(RefreshFailed("expired_reply", self._say(EXPIRED_REPLY), terminal=False))

    # Bookkeeping.

    def _tell_standing(self) -> None:
        """Tell once what stands in the way without a try of ours: a verdict on the disk, a link in doubt."""
        token, problem = self._token, None
        if error := self._chain.verdict:
            problem = RefreshFailed(error, self._say(BLOCKED[error]), terminal=True)
        elif token and self._in_doubt and self.at_hand.is_of_use(token) and not self._history.dead:
            problem = RefreshFailed(_DOUBT, self._say(DOUBTFUL), terminal=False)
        # While a spent link stands in the store its lock is kept, so that no new login can help.
        if problem and not self._chain.unfinished and self._history.stands(problem):
            self._observer(problem)

    def _heal(self) -> None:
        self.at_hand.heal()
        self._history.healed()

    def _fail(self, failure: RefreshFailed, retry_after: float | None = None) -> None:
        self._chain.note_refresh(self._clock.wall(), failure.reason, rotated=False)
        self._history.failed(failure, retry_after)
        self._observer(failure)
