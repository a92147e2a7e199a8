"""When a link is to be sent whose last sending brought no verdict. Pure.

Law: a link that the server may have rotated is sent again within the server's grace, or when nothing is left
to lose: sent later it ends the whole grant (facts: OAuth server), and with it an access token that works.
"""

from __future__ import annotations

from typing import Final

from grok_oauth_proxy.credentials.token import Token

_GRACE: Final = 40.0
"""Seconds in which a link may be sent again when its answer was lost. The server allows about 60, counted
from when it had the link, and the sending itself may take 20."""

_SUSPENDED: Final = 60.0
"""Seconds by which wall clock and monotonic clock must differ to say that the system slept."""


def in_doubt(sent_at: float | None, now: float) -> bool:
    """Whether sending the link again could end the login: it was first sent at `sent_at`, without a verdict.

    A clock that was put back, or forward by a suspend, tells nothing, so that the grace counts as over.
    """
    return sent_at is not None and not 0 <= now - sent_at <= _GRACE


def has_slept(before: float, after: float) -> bool:
    """Whether the system slept, by the seconds the wall clock was ahead of the monotonic one."""
    return abs(after - before) > _SUSPENDED


def is_of_use(token: Token, now: float, *, worthless: bool) -> bool:
    """Whether the access token is worth keeping; `worthless`: the API refuses it wherever it is tried."""
    return token.remaining(now) > token.margin and not worthless


def seconds_until_due(
    token: Token, *, sent_at: float | None, now: float, window: float, worthless: bool
) -> float:
    """Seconds until the link that came with `token` is to be sent; `window`: how long before its expiry."""
    if not in_doubt(sent_at, now):
        return token.remaining(now) - token.refresh_window(window)
    return token.remaining(now) - token.margin if is_of_use(token, now, worthless=worthless) else 0.0
