"""Watches Hermes' store, so that a new login or a refresh by Hermes is in use without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from grok_oauth_proxy.errors import StoreProblem
from grok_oauth_proxy.events import Observer, StoreTrouble

Fingerprint = tuple[tuple[int, int, int] | None, ...]


class Watched(Protocol):
    """See `credentials.hermes.HermesStore.fingerprint`."""

    def fingerprint(self) -> Fingerprint: ...


class StoreWatcher:
    """Looks every `interval` seconds; remembers what it saw when it was made."""

    def __init__(
        self, store: Watched, reload: Callable[[], Awaitable[bool]], *, interval: float, observer: Observer
    ) -> None:
        self._store = store
        self._reload = reload
        self._interval = interval
        self._observer = observer
        self._seen = store.fingerprint()
        self._reported: tuple[Fingerprint, str] | None = None

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(self._interval)
            await self.look()

    async def look(self) -> None:
        """Reload when the store changed. One that can't be used (yet) is reported once and tried again.

        One that somebody else has locked is used, and looked at again (`TokenManager.reload` gives False).
        """
        found = await asyncio.to_thread(self._store.fingerprint)
        if found == self._seen:
            return
        try:
            settled = await self._reload()
        except StoreProblem as problem:
            self._seen = ()
            if self._reported != (found, problem.code):
                self._reported = (found, problem.code)
                self._observer(StoreTrouble(problem.code, problem.message))
            return
        if settled:
            self._seen = found
