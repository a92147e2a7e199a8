"""How refreshing has gone: what is wrong now, when another try is due, what was counted.

Law: after a failure there is a pause before the next try, a longer one each time; after a terminal verdict
there is no next try. Where no server had a part in it the pause stays short: another try costs nothing.
"""

from __future__ import annotations

import random
from typing import Final

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.errors import CredentialsUnavailable
from grok_oauth_proxy.events import RefreshFailed

_MAX_BACKOFF: Final = 60.0
_MAX_BACKOFF_HERE: Final = 5.0
"""Seconds. A network or a disk that is mended after hours is of use at once."""
_HERE: Final = frozenset(
    {
        "unreachable",
        *("missing", "unreadable", "unsafe_link", "corrupt", "no_tokens", "unknown_version"),
        *("lock_busy", "lock_failed", "not_saved"),
        *("store_read_only", "store_not_writable", "store_not_written", "state_not_writable"),
    }
)
"""What goes wrong before a server is reached, or after its answer."""


class RefreshHistory:
    """What the manager remembers of its refreshes. Times are seconds, monotonic clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.problem: RefreshFailed | None = None
        """What stands in the way now."""
        self.successes = 0
        self.failures = 0
        self._in_a_row = 0
        self._retry_at = 0.0

    def __repr__(self) -> str:
        return f"RefreshHistory(problem={self.problem}, successes={self.successes}, failures={self.failures})"

    @property
    def dead(self) -> bool:
        """Only a change of the store can help."""
        return self.problem is not None and self.problem.terminal

    @property
    def pause(self) -> float:
        """Seconds until another try may be made; none are left when it is zero or less."""
        return self._retry_at - self._clock.monotonic()

    @property
    def blocked(self) -> bool:
        """Nothing may be sent now."""
        return self.problem is not None and (self.dead or self.pause > 0)

    def unavailable(self) -> CredentialsUnavailable:
        """What a request is told that gets no token."""
        if self.problem is None:
            return CredentialsUnavailable(
                "There is no valid access token yet. Try again in a moment.", code="no_token", retry_after=1
            )
        wait = None if self.problem.terminal else max(1, round(self.pause))
        return CredentialsUnavailable(self.problem.message, code=self.problem.reason, retry_after=wait)

    def stands(self, problem: RefreshFailed) -> bool:
        """Something stands in the way without a try having failed here; True when that is news."""
        news = self.problem is None or self.problem.reason != problem.reason
        if news:
            self.problem = problem
        return news

    def succeeded(self) -> None:
        self.successes += 1
        self.healed()

    def healed(self) -> None:
        """There is a good token again, wherever it came from."""
        self.problem = None
        self._retry_at = 0.0
        self._in_a_row = 0

    def failed(self, failure: RefreshFailed, retry_after: float | None = None) -> None:
        """A try failed; the server asked for a pause of `retry_after` seconds."""
        self.problem = failure
        self.failures += 1
        longest = _MAX_BACKOFF_HERE if failure.reason in _HERE else _MAX_BACKOFF
        # Jitter needs no cryptographic randomness.
        backoff = min(longest, 2.0**self._in_a_row) * random.uniform(0.5, 1.0)  # noqa: S311
        self._in_a_row += 1
        self._retry_at = self._clock.monotonic() + max(backoff, retry_after or 0.0)
