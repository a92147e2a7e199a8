"""Tasks that run beside the requests: named, owned, brought back when they fail, cancelled on the way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from grok_oauth_proxy.bugs import log_bug

_REVIVE_AFTER: Final = 5.0

Job = Callable[[], Awaitable[None]]


@asynccontextmanager
async def background(**jobs: Job) -> AsyncIterator[None]:
    """Run the jobs, each in a task of its name, for as long as the block lasts."""
    tasks = [asyncio.create_task(_keep_running(name, job), name=name) for name, job in jobs.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_running(name: str, job: Job) -> None:
    while True:
        try:
            await job()
        except Exception as error:  # noqa: BLE001 - a bug in one task must not stop the daemon
            log_bug(f"The task {name} failed; it starts again.", error)
        await asyncio.sleep(_REVIVE_AFTER)
