"""A look at an answer before the client gets it: the body of a refusal decides what it means."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from grok_oauth_proxy.proxy.headers import header
from grok_oauth_proxy.proxy.rejections import (
    OTHER,
    PEEK_LIMIT,
    PEEKED_STATUSES,
    Rejection,
    classify,
    is_readable,
)
from grok_oauth_proxy.proxy.upstream import Answer


class Peeked(NamedTuple):
    """An answer, the first bytes of its body if they were looked at, and what it means if it is a refusal.

    `unreadable`: a 403 whose body, which decides, is in a coding that is not understood here.
    """

    answer: Answer
    prefix: bytes = b""
    rejection: Rejection | None = None
    unreadable: bool = False

    def retry_after(self, now: float) -> float | None:
        """Seconds to wait as the API says, from `Retry-After` in either form (RFC 9110 §10.2.3)."""
        value = (header(self.answer.headers, b"retry-after") or b"").decode("latin-1").strip()
        if value.isascii() and value.isdigit():
            return float(value[:9])
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        return max(0.0, moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now)


async def peek(answer: Answer) -> Peeked:
    """Look at an answer; raises `UpstreamFailure` when it breaks off there."""
    if answer.status not in PEEKED_STATUSES:
        return Peeked(answer)
    try:
        return await _read_start(answer)
    except BaseException:
        await answer.aclose()
        raise


async def _read_start(answer: Answer) -> Peeked:
    prefix = b""
    while len(prefix) < PEEK_LIMIT:
        chunk = await answer.chunk()
        if chunk is None:
            encoding = header(answer.headers, b"content-encoding")
            unreadable = answer.status == 403 and not is_readable(encoding)
            return Peeked(answer, prefix, classify(answer.status, prefix, encoding), unreadable)
        prefix += chunk
    # No refusal of the API is this long; what it is gets delivered as it comes.
    return Peeked(answer, prefix, OTHER)
