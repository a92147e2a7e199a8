"""What the API says is left of the rate limits. Pure."""

from __future__ import annotations

from typing import Final

from grok_oauth_proxy.events import RateLimitsTold
from grok_oauth_proxy.proxy.headers import Headers

_PREFIX: Final = b"x-ratelimit-"
_KNOWN: Final = {
    b"x-ratelimit-limit-requests": "limit_requests",
    b"x-ratelimit-remaining-requests": "remaining_requests",
    b"x-ratelimit-limit-tokens": "limit_tokens",
    b"x-ratelimit-remaining-tokens": "remaining_tokens",
}
_LONGEST: Final = 15


def limits_told(headers: Headers, *, at: float) -> RateLimitsTold | None:
    """What the headers of an answer say, which came `at` (wall seconds); None when they say nothing."""
    values = [item for item in headers if item[0].startswith(_PREFIX)]
    if not values:
        return None
    left = dict.fromkeys(_KNOWN.values())
    told = {_KNOWN[name]: int(value) for name, value in values if name in _KNOWN and _is_number(value)}
    return RateLimitsTold(left | told, at) if told else None


def _is_number(value: bytes) -> bool:
    return value.isdigit() and len(value) <= _LONGEST
