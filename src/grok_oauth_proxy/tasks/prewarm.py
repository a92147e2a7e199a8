"""Refreshes the token before anybody needs it, and tries again where a refresh failed."""

from __future__ import annotations

from typing import Final, Protocol

_LOOK_AGAIN: Final = 15.0
"""Seconds at most between two looks at the wall clock: a sleeping laptop stops every timer."""
_SHORTEST_WAIT: Final = 0.1


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
