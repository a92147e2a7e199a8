"""What one request does about a refused token: wait, take a newer one, or have it refreshed.

The decision is `retry.after_stale_token`; here it is carried out within a budget of seconds. A path that
refuses whatever token it gets, and an edge that is minutes late, must not cost refresh after refresh.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.token import Token
from grok_oauth_proxy.errors import CredentialsUnavailable
from grok_oauth_proxy.events import Observer, StaleTokenRetry
from grok_oauth_proxy.proxy import retry
from grok_oauth_proxy.proxy.fallback import KeyFallback
from grok_oauth_proxy.proxy.rejections import ENTITLEMENT, STALE_TOKEN, Rejection
from grok_oauth_proxy.proxy.replies import not_resendable

_FUTILE_FOR: Final = 300.0
"""Seconds for which a path that refused a new token too causes no refresh. The edge has been seen to take two
minutes to learn of a token (facts: API)."""
_FUTILE_PATHS: Final = 5
"""When so many paths refuse new tokens, no path causes a refresh that never took a token."""
_ACCEPTED_PATHS: Final = 256
_MOST_RESENDS: Final = 3
_REFUSING_LONG: Final = 60.0
"""Seconds of nothing but refusals after which a token is of no use to whoever asks."""

CURABLE: Final = (STALE_TOKEN, ENTITLEMENT)
"""What may be answered by sending the request again, with something else."""

Step = tuple[Token, retry.Attempt]


class TokenProvider(Protocol):
    """See `credentials.manager.TokenManager`."""

    async def get(self, *, refused: Token | None = None, at_least: float = 0.0) -> Token: ...
    def note_refused(self, token: Token, *, everywhere: bool = False) -> None: ...
    def note_accepted(self) -> None: ...


class Recovery:
    """Shared by all requests of a process."""

    def __init__(
        self,
        tokens: TokenProvider,
        fallback: KeyFallback,
        observer: Observer,
        clock: Clock,
        *,
        replay_limit: int,
    ) -> None:
        self._tokens = tokens
        self._fallback = fallback
        self._observer = observer
        self._clock = clock
        self._replay_limit = replay_limit
        self._futile: dict[bytes, float] = {}
        """The paths that refused a new token too, and when (monotonic)."""
        self._accepted: dict[bytes, None] = {}
        """The paths that took a token, the newest last."""
        self._refusing: set[bytes] = set()
        """The paths that refused a token since the API last took one, the first of them at `_refusing_since`
        (monotonic)."""
        self._refusing_since = 0.0
        self._doubted: Token | None = None
        """The token last refused while a body was sent that could not be sent again."""

    async def first(self, *, at_least: float, brings_secret: bool) -> Token:
        """What a request is sent with at first; raises `CredentialsUnavailable`.

        `brings_secret`: it is sent with a credential of the client's, so that the key is not called upon.
        """
        try:
            return await self._tokens.get(at_least=at_least)
        except CredentialsUnavailable as error:
            key = None if brings_secret else self._fallback.for_lack_of_a_token(error)
            if key is None:
                raise
            return key

    def note_accepted(self, path: bytes) -> None:
        """The API took a token on this path."""
        if self._refusing:
            self._refusing.clear()
            self._tokens.note_accepted()
        if path not in self._accepted:
            self._accepted[path] = None
            self._futile.pop(path, None)
            if len(self._accepted) > _ACCEPTED_PATHS:
                del self._accepted[next(iter(self._accepted))]

    async def step(
        self, token: Token, attempt: retry.Attempt, rejection: Rejection, *, path: bytes, can_resend: bool
    ) -> Step | None:
        """The token and attempt to go on with after one of `CURABLE`; None: deliver the refusal.

        Raises `CredentialsUnavailable` where there can be no other token: it tells the client more than the
        refusal would; and `ClientError` where another try is the client's, because the body is gone.
        """
        if rejection is ENTITLEMENT:
            self.note_accepted(path)
            key = self._fallback.instead_of(token) if can_resend else None
            return None if key is None else (key, attempt)
        if self._fallback.is_in(token):
            return None
        if not (attempt.resends or attempt.waited):
            self._observer(StaleTokenRetry("attempt"))
        step = None
        try:
            step = await self._step(token, attempt, path=path, can_resend=can_resend)
        finally:
            if step is None or not can_resend:
                self._observer(StaleTokenRetry("failure"))
        if step is not None and not can_resend:
            raise not_resendable(self._replay_limit)
        return step

    async def _step(
        self, token: Token, attempt: retry.Attempt, *, path: bytes, can_resend: bool
    ) -> Step | None:
        deadline = self._clock.monotonic() + retry.STALE_BUDGET - attempt.waited
        self._tokens.note_refused(token, everywhere=self._is_refused_everywhere(path))
        current = await self._current(token, deadline)
        decision = retry.after_stale_token(
            attempt.having_waited(self._waited(deadline)),
            token_age=self._clock.wall() - token.issued_at,
            is_current=current is token,
            futile=self._is_futile(path),
            can_resend=can_resend,
            doubted=self._doubted is token,
        )
        if not can_resend:
            self._doubted = token
        if isinstance(decision, retry.Resend):
            await asyncio.sleep(decision.delay)
            # Somebody else may have had the token refreshed meanwhile.
            current = await self._current(current, deadline)
            following = attempt.resent(paused=decision.delay > 0)
            return current, following.having_waited(self._waited(deadline))
        if isinstance(decision, retry.Refresh):
            asked_at = self._clock.wall()
            renewed = await self._renewed(token, deadline)
            if renewed is not None:
                # A token from before has cost no refresh: another owner's, or another login's.
                spent = renewed.issued_at >= asked_at or attempt.resends >= _MOST_RESENDS
                following = attempt.refreshed() if spent else attempt.resent(paused=False)
                return renewed, following.having_waited(self._waited(deadline))
        elif attempt.refreshes:
            self._futile = {**self._futile, path: self._clock.monotonic()}
            self._accepted.pop(path, None)
        return None

    def _is_refused_everywhere(self, path: bytes) -> bool:
        """A path that used to take tokens refuses one; or several paths do, or one does all the time."""
        if not self._refusing:
            self._refusing_since = self._clock.monotonic()
        if len(self._refusing) < _FUTILE_PATHS:
            self._refusing.add(path)
        long = self._clock.monotonic() - self._refusing_since > _REFUSING_LONG
        return path in self._accepted or len(self._refusing) > 1 or long

    def _waited(self, deadline: float) -> float:
        return self._clock.monotonic() - deadline + retry.STALE_BUDGET

    def _is_futile(self, path: bytes) -> bool:
        oldest = self._clock.monotonic() - _FUTILE_FOR
        self._futile = {path: at for path, at in self._futile.items() if at > oldest}
        return path in self._futile or (len(self._futile) >= _FUTILE_PATHS and path not in self._accepted)

    async def _current(self, token: Token, deadline: float) -> Token:
        """`token` itself, unless a newer one is known."""
        try:
            async with asyncio.timeout(deadline - self._clock.monotonic()):
                current = await self._tokens.get()
        except (CredentialsUnavailable, TimeoutError):
            return token
        return token if current.bearer == token.bearer else current

    async def _renewed(self, token: Token, deadline: float) -> Token | None:
        """Another token than the refused one; None when there is no time to wait for it."""
        try:
            async with asyncio.timeout(deadline - self._clock.monotonic()):
                return await self._tokens.get(refused=token)
        except TimeoutError:
            return None
