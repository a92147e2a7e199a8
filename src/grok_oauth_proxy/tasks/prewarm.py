"""Has ready what a request will need: a fresh token, and connections to the API."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

_LOOK_AGAIN: Final = 15.0
"""Seconds at most between two looks at the wall clock: a sleeping laptop stops every timer."""
_SHORTEST_WAIT: Final = 0.1


_RENEW_EVERY: Final = 5.0
_LONGEST_PAUSE: Final = 60.0


class Refreshable(Protocol):
    """See `credentials.manager.TokenManager`."""

    def seconds_until_due(self) -> float: ...
    async def wait_for_change(self, timeout: float) -> None: ...
    async def refresh_ahead(self) -> None: ...


async def keep_token_fresh(tokens: Refreshable) -> None:
    """Never returns."""
    while True:
        due = tokens.seconds_until_due()
        await tokens.wait_for_change(min(max(due, _SHORTEST_WAIT), _LOOK_AGAIN))
        await tokens.refresh_ahead()


class Warmable(Protocol):
    """See `proxy.upstream.Upstream`."""

    async def warm(self, count: int) -> bool: ...


async def keep_connections_warm(upstream: Warmable, count: int) -> None:
    """Never returns. While the API can't be reached, it is tried less and less often."""
    pause = _RENEW_EVERY
    while True:
        warm = await upstream.warm(count)
        pause = _RENEW_EVERY if warm else min(pause * 2, _LONGEST_PAUSE)
        await asyncio.sleep(pause)
