"""The lock of the store, as a process takes it to look after its grant.

Law: while a successor has not reached the store, the lock is kept: whoever else took it would find the spent
link there, and send it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from grok_oauth_proxy.credentials.chain import Chain
from grok_oauth_proxy.credentials.files import LOCK_TIMEOUT
from grok_oauth_proxy.errors import StoreProblem


class StoreLock:
    """Of the store that `chain` is in. One task of the process at a time has it."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._turn = asyncio.Lock()
        self._kept: AsyncExitStack | None = None

    def __repr__(self) -> str:
        return f"StoreLock(kept={self._kept is not None})"

    @asynccontextmanager
    async def held(
        self, timeout: float = LOCK_TIMEOUT, *, needless: Callable[[], bool] | None = None
    ) -> AsyncIterator[None]:
        """Raises `StoreProblem` (lock_busy) after `timeout` seconds without it, or once it is `needless`."""
        if not timeout and self._turn.locked():
            raise StoreProblem("This process has the lock already.", code="lock_busy")
        async with self._turn:
            if self._kept is None:
                taken = AsyncExitStack()
                await taken.enter_async_context(self._chain.source.lock(timeout, needless=needless))
                self._kept = taken
            try:
                yield
            finally:
                if not self._chain.unfinished:
                    await self.give_back()

    async def give_back(self) -> None:
        """Also when somebody will find a spent link: this process ends."""
        taken, self._kept = self._kept, None
        if taken is not None:
            await taken.aclose()
