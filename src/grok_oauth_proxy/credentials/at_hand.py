"""Which of the access tokens at hand is given out. No I/O.

Law: nobody gets the token the API has just refused him, nor one too old for its journey; after a refresh
ahead of time the old token is given out for a moment, because the API's edge learns of new ones late (facts:
API).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials import doubt
from grok_oauth_proxy.credentials.token import Token

_OVERLAP: Final = 10.0


class TokensAtHand:
    """The token of the grant in use, which `newest` gives, and the one before it."""

    def __init__(self, newest: Callable[[], Token | None], *, window: float, clock: Clock) -> None:
        self._newest = newest
        self._window = window
        self._clock = clock
        self._overlap: tuple[Token, float] | None = None
        """The token before the last refresh ahead of time, and until when (monotonic) it is still sent."""
        self._useless: Token | None = None
        """A token the API refused as stale, of a login that is dead."""
        self._worthless: Token | None = None
        """A token the API refuses wherever it is tried."""

    def usable(self, refused: Token | None, at_least: float) -> Token | None:
        """A token, not `refused`, with more than `at_least` seconds left, as its refresh window allows."""
        now = self._clock.wall()
        bad = [known.bearer for known in (refused, self._useless) if known]
        for token in self._in_use():
            needed = token.margin
            if at_least > needed:
                needed = max(min(at_least, token.refresh_window(self._window)), needed)
            if token.remaining(now) > needed and token.bearer not in bad:
                return token
        return None

    def _in_use(self) -> tuple[Token, ...]:
        token = self._newest()
        if token and self._overlap and self._clock.monotonic() < self._overlap[1]:
            return (self._overlap[0], token)
        return (token,) if token else ()

    def is_stale(self, refused: Token | None) -> bool:
        """Whether the newest token wants a refresh: it was `refused`, or runs out soon."""
        token = self._newest()
        if token is None or (refused is not None and token.bearer == refused.bearer):
            return True
        return token.remaining(self._clock.wall()) <= token.refresh_window(self._window)

    def is_worthless(self, token: Token) -> bool:
        """Whether the API refuses it wherever it is tried."""
        return self._worthless is not None and self._worthless.bearer == token.bearer

    def is_of_use(self, token: Token) -> bool:
        """Whether it is worth keeping: see `doubt.is_of_use`."""
        return doubt.is_of_use(token, self._clock.wall(), worthless=self.is_worthless(token))

    def note_refused(self, token: Token, *, everywhere: bool) -> None:
        """One from before the last refresh is not given out again; `everywhere`: wherever it was tried."""
        if self._overlap and self._overlap[0].bearer == token.bearer:
            self._overlap = None
        if everywhere:
            self._worthless = token

    def note_accepted(self) -> None:
        """The API takes the token again."""
        self._worthless = None

    def note_useless(self, token: Token) -> None:
        """It was refused, and its login is dead: nothing is left to hope for."""
        self._useless = token

    def keep_for_a_moment(self, token: Token) -> None:
        """It is about to be succeeded ahead of time, and still good."""
        self._overlap = (token, self._clock.monotonic() + _OVERLAP)

    def forget_the_old(self) -> None:
        """The grant was changed by another owner: what was before is none of its tokens."""
        self._overlap = None

    def heal(self) -> None:
        """There is a good token again."""
        self._useless = self._worthless = None
