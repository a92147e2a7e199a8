"""What the API last said about this account: its last refusal, what is left of the limits, who pays."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.events import (
    DrainStarted,
    Event,
    KeyUsedInstead,
    RateLimitsTold,
    RequestFinished,
    UpstreamRejected,
)

DEGRADING: Final = frozenset({"entitlement", "spending_limit", "quota"})
"""Refusals of the account, which the next request will meet too."""
_FORGOTTEN_AFTER: Final = 24 * 3600.0
"""Seconds after which a refusal of the account tells nothing: usage is counted over a day (facts: API)."""


class News:
    """An observer. A refusal of the account stands until its path answers again, or for a day."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rejection: UpstreamRejected | None = None
        self._standing: UpstreamRejected | None = None
        self.limits: RateLimitsTold | None = None
        """What is left of the rate limits, as last told."""
        self._key_requests = 0
        self.draining = False
        """The proxy ends, and takes no new connection."""

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, RequestFinished):
            answered = event.status < 300 and event.method != "OPTIONS"  # preflights are answered here
            if self._standing and answered and event.path == self._standing.path:
                self._standing = None
        elif isinstance(event, UpstreamRejected):
            self._rejection = event
            if event.kind in DEGRADING:
                self._standing = event
        elif isinstance(event, RateLimitsTold):
            self.limits = event
        elif isinstance(event, KeyUsedInstead):
            self._key_requests += 1
        elif isinstance(event, DrainStarted):
            self.draining = True

    @property
    def refused(self) -> str | None:
        """The kind of refusal that the account meets for now."""
        standing = self._standing
        if standing is None or self._clock.wall() - standing.at >= _FORGOTTEN_AFTER:
            return None
        return standing.kind

    def report(self, *, key_set: bool) -> dict[str, Any]:
        """Its part of /health."""
        rejection, limits = self._rejection, self.limits
        return {
            "last_rejection": rejection
            and {
                "kind": rejection.kind,
                "at": iso(rejection.at),
                "meaning": rejection.meaning,
                "remedy": rejection.remedy,
            },
            "account_refused": self.refused,
            "rate_limits": limits and {**limits.left, "at": iso(limits.at)},
            "api_key_fallback": {"requests": self._key_requests} if key_set else None,
        }


def iso(moment: float) -> str:
    """Seconds since the epoch in ISO 8601, UTC."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
