"""What an answer tells of the rate limits."""

from __future__ import annotations

import pytest

from grok_oauth_proxy.proxy.headers import Headers
from grok_oauth_proxy.proxy.limits import limits_told


def test_all_four() -> None:
    """All that is told is kept, with the time."""
    headers = [
        (b"content-type", b"application/json"),
        (b"x-ratelimit-limit-requests", b"480"),
        (b"x-ratelimit-remaining-requests", b"479"),
        (b"x-ratelimit-limit-tokens", b"4000000"),
        (b"x-ratelimit-remaining-tokens", b"0"),
    ]
    told = limits_told(headers, at=5.0)
    assert told is not None
    assert list(told.left.values()) == [480, 479, 4000000, 0]
    assert told.at == 5.0


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"text/plain")],
        [(b"x-ratelimit-reset-requests", b"5")],
        [(b"x-ratelimit-limit-requests", b"-5")],
        [(b"x-ratelimit-limit-requests", b"")],
        [(b"x-ratelimit-limit-requests", "²".encode())],
        [(b"x-ratelimit-limit-requests", b"9" * 5000)],
        [(b"x-ratelimit-limit-requests", b"1e9")],
    ],
    ids=str,
)
def test_nothing_told(headers: Headers) -> None:
    """What is no plain number is not told."""
    assert limits_told(headers, at=0.0) is None


def test_what_is_missing() -> None:
    """What an answer leaves out is unknown."""
    told = limits_told([(b"x-ratelimit-remaining-tokens", b"7")], at=0.0)
    assert told is not None
    assert told.left == {
        "limit_requests": None,
        "remaining_requests": None,
        "limit_tokens": None,
        "remaining_tokens": 7,
    }
