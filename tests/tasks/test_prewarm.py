"""Refreshing the token before anybody needs it, and the tasks that this runs in."""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress

import pytest

from grok_oauth_proxy.tasks.background import background
from grok_oauth_proxy.tasks.prewarm import keep_token_fresh

pytestmark = pytest.mark.anyio


class Tokens:
    """Says when it is due, by a script; remembers how long it was waited for, and what came of it."""

    def __init__(self, *due: float) -> None:
        self._due = list(due)
        self.waits: list[float] = []
        self.refreshes = 0
        self.over = asyncio.Event()

    def seconds_until_due(self) -> float:
        return self._due[0]

    async def wait_for_change(self, timeout: float) -> None:
        self.waits.append(timeout)
        await asyncio.sleep(0)

    async def refresh_ahead(self) -> None:
        self.refreshes += 1
        if len(self._due) > 1:
            self._due.pop(0)
        else:
            self.over.set()
            await asyncio.Event().wait()


async def waits_of(*due: float) -> list[float]:
    tokens = Tokens(*due)
    async with background(prewarm=lambda: keep_token_fresh(tokens)):
        await asyncio.wait_for(tokens.over.wait(), 5)
    assert tokens.refreshes == len(due)
    return tokens.waits


@pytest.mark.parametrize(
    ("due", "wait"),
    [(3.0, 3.0), (0.5, 0.5), (0.0, 0.1), (-100.0, 0.1), (15.0, 15.0), (6 * 3600.0, 15.0), (math.inf, 15.0)],
)
async def test_wait(due: float, wait: float) -> None:
    """It waits until the token is due, never without a pause, and never too long to notice a suspend."""
    assert await waits_of(due) == [wait]


async def test_goes_on() -> None:
    """After each look it asks anew when the next is due."""
    assert await waits_of(12.0, 2.0, -1.0, 20.0) == [12.0, 2.0, 0.1, 15.0]


async def test_tasks_have_names() -> None:
    """Background tasks can be told apart, run side by side, and are gone afterwards."""
    started = [asyncio.Event(), asyncio.Event()]

    async def job(number: int) -> None:
        started[number].set()
        await asyncio.Event().wait()

    async with background(one=lambda: job(0), other=lambda: job(1)):
        await asyncio.gather(*(event.wait() for event in started))
        assert {"one", "other"} <= {task.get_name() for task in asyncio.all_tasks()}
    assert not {"one", "other"} & {task.get_name() for task in asyncio.all_tasks()}


async def test_a_failing_task_is_told_without_its_secret(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a task stops nothing, and is logged by its place and kind, not by its text."""
    failed = asyncio.Event()
    quoted = "-".join(("canary", "in", "the", "text"))

    async def fail() -> None:
        failed.set()
        raise ZeroDivisionError(quoted)

    with caplog.at_level(logging.ERROR):
        async with background(prewarm=fail):
            await failed.wait()
            await asyncio.sleep(0)
    (record,) = caplog.records
    assert "The task prewarm failed" in record.getMessage()
    assert "ZeroDivisionError" in record.getMessage()
    assert quoted not in caplog.text


async def test_the_block_may_fail() -> None:
    """The tasks end when the block they run beside fails."""
    ended = asyncio.Event()
    began = asyncio.Event()

    async def job() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with suppress(ZeroDivisionError):
        async with background(job=job):
            await began.wait()
            raise ZeroDivisionError
    assert ended.is_set()
