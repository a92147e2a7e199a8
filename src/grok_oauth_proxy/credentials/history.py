"""How refreshing has gone: what is wrong now, when another try is due, what was counted.

Law: after a failure there is a pause before the next try, a longer one each time; after a terminal verdict
there is no next try.
"""

from __future__ import annotations

import math
import random
from typing import Final

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.events import RefreshFailed

_MAX_BACKOFF: Final = 60.0
_GRACE: Final = 50.0
"""Seconds in which a link may be sent again when its answer was lost; the server allows about 60."""
_AMBIGUOUS: Final = frozenset(
    {"timeout", "broken_off", "suspended", "malformed_reply", "empty_reply", "http_502", "http_504"}
)
"""Failures after which the server may have rotated all the same."""


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
        self._sent_in_vain = math.inf
        """When the link was first sent without a verdict coming back."""

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

    @property
    def link_in_doubt(self) -> bool:
        """The link may have been spent by a refresh whose answer was lost, too long ago to send it again."""
        return self._clock.monotonic() - self._sent_in_vain > _GRACE

    def succeeded(self) -> None:
        self.successes += 1
        self.healed()

    def healed(self) -> None:
        """There is a good token again, wherever it came from."""
        self.problem = None
        self._sent_in_vain = math.inf
        self._retry_at = 0.0
        self._in_a_row = 0

    def failed(self, failure: RefreshFailed, retry_after: float | None = None) -> None:
        """A try failed; the server asked for a pause of `retry_after` seconds."""
        self.problem = failure
        self.failures += 1
        if failure.reason in _AMBIGUOUS:
            self._sent_in_vain = min(self._sent_in_vain, self._clock.monotonic())
        # Jitter needs no cryptographic randomness.
        backoff = min(_MAX_BACKOFF, 2.0**self._in_a_row) * random.uniform(0.5, 1.0)  # noqa: S311
        self._in_a_row += 1
        self._retry_at = self._clock.monotonic() + max(backoff, retry_after or 0.0)
