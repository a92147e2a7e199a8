"""What the API says is left of the rate limits. Pure."""

from __future__ import annotations

from typing import Final

from grok_oauth_proxy.events import RateLimitsTold
from grok_oauth_proxy.proxy.headers import Headers, first_values

_KNOWN: Final = {
    b"x-ratelimit-limit-requests": "limit_requests",
    b"x-ratelimit-remaining-requests": "remaining_requests",
    b"x-ratelimit-limit-tokens": "limit_tokens",
    b"x-ratelimit-remaining-tokens": "remaining_tokens",
}
_LONGEST: Final = 15


def limits_told(headers: Headers, *, at: float) -> RateLimitsTold | None:
    """What the headers of an answer say, which came `at` (wall seconds); None when they say nothing."""
    if _KNOWN.keys().isdisjoint(first := first_values(headers)):
        return None  # most do not
    left = {name: _number(first.get(key)) for key, name in _KNOWN.items()}
    return RateLimitsTold(left, at) if any(value is not None for value in left.values()) else None


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) <= _LONGEST else None
