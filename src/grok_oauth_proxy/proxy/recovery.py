"""What one request does about a refused token: wait, take a newer one, or have it refreshed.

The decision is `retry.after_stale_token`; here it is carried out, within a budget of seconds, and refreshes
are kept apart in time, because a refused token may have causes that no refresh cures.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, Protocol

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.token import Token
from grok_oauth_proxy.errors import CredentialsUnavailable
from grok_oauth_proxy.proxy import retry

_PAUSE: Final = 60.0
"""Seconds between two refreshes because of refused tokens, whoever else is answered meanwhile."""

Step = tuple[Token, retry.Attempt]


class TokenProvider(Protocol):
    """See `credentials.manager.TokenManager`."""

    async def get(self, *, refused: Token | None = None, at_least: float = 0.0) -> Token: ...
    def note_refused(self, token: Token) -> None: ...


class Recovery:
    """Shared by all requests of a process."""

    def __init__(self, tokens: TokenProvider, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock
        self._refreshed_at = -math.inf
        self._helped = True

    def note_accepted(self) -> None:
        """The API took a token: the last refresh, if there was one, has helped."""
        self._helped = True

    async def step(self, token: Token, attempt: retry.Attempt, *, can_resend: bool) -> Step | None:
        """The token and attempt to go on with; None: deliver the refusal.

        Raises `CredentialsUnavailable` where there can be no other token: it tells the client more than the
        refusal would.
        """
        began = self._clock.monotonic()
        self._tokens.note_refused(token)
        current = await self._current(token, retry.STALE_BUDGET - attempt.waited)
        decision = retry.after_stale_token(
            attempt,
            token_age=self._clock.wall() - token.issued_at,
            is_current=current is token,
            since_futile=self._since_futile(began),
            can_resend=can_resend,
        )
        if isinstance(decision, retry.Resend):
            await asyncio.sleep(decision.delay)
            following = attempt.resent(decision.delay)
            # Somebody else may have had the token refreshed meanwhile.
            return await self._current(current, retry.STALE_BUDGET - following.waited), following
        if isinstance(decision, retry.Refresh):
            renewed = await self._renewed(token, retry.STALE_BUDGET - attempt.waited)
            if renewed is not None:
                self._refreshed_at, self._helped = began, False
                return renewed, attempt.refreshed(self._clock.monotonic() - began)
        return None

    def _since_futile(self, now: float) -> float:
        """Seconds since a refresh that did not help, or was so recent that another one cannot either."""
        since = now - self._refreshed_at
        return math.inf if self._helped and since > _PAUSE else since

    async def _current(self, token: Token, budget: float) -> Token:
        """`token` itself, unless a newer one is known."""
        try:
            async with asyncio.timeout(budget):
                current = await self._tokens.get()
        except (CredentialsUnavailable, TimeoutError):
            return token
        return token if current.bearer == token.bearer else current

    async def _renewed(self, token: Token, budget: float) -> Token | None:
        """Another token than the refused one; None when there is no time to wait for it."""
        try:
            async with asyncio.timeout(budget):
                return await self._tokens.get(refused=token)
        except TimeoutError:
            return None
