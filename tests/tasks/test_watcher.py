"""Watching Hermes' store."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from grok_oauth_proxy.credentials.hermes import HermesStore
from grok_oauth_proxy.errors import StoreProblem
from grok_oauth_proxy.events import Event, StoreTrouble
from grok_oauth_proxy.tasks.background import background
from grok_oauth_proxy.tasks.watcher import StoreWatcher

pytestmark = pytest.mark.anyio


class Desk:
    """A store on disk, a reload that can be told to fail, and what was said of it."""

    def __init__(self, folder: Path, *, interval: float = 3600) -> None:
        self.path = folder / "auth.json"
        self.reloads = 0
        self.reloaded = asyncio.Event()
        self.pause: asyncio.Event | None = None
        self.problem: Exception | None = None
        self.settled = True
        self.told: list[Event] = []
        self.write(0)
        self.watcher = StoreWatcher(
            HermesStore((self.path,)), self._reload, interval=interval, observer=self.told.append
        )

    def write(self, version: int) -> None:
        new = self.path.with_name("new")
        new.write_text(json.dumps({"version": version}))
        new.replace(self.path)

    async def _reload(self) -> bool:
        self.reloads += 1
        self.reloaded.set()
        if self.pause:
            await self.pause.wait()
        if self.problem:
            raise self.problem
        return self.settled


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_unchanged(desk: Desk) -> None:
    """A store that did not change is not read."""
    for _ in range(3):
        await desk.watcher.look()
    assert desk.reloads == 0


async def test_changed(desk: Desk) -> None:
    """Each change is read once."""
    for version in (1, 2):
        desk.write(version)
        for _ in range(3):
            await desk.watcher.look()
        assert desk.reloads == version


async def test_changed_before_the_first_look(tmp_path: Path) -> None:
    """A change between the making of the watcher and its first look is not missed."""
    desk = Desk(tmp_path)
    desk.write(1)
    await desk.watcher.look()
    assert desk.reloads == 1


async def test_changed_while_it_is_read(desk: Desk) -> None:
    """A change during a reload leads to another one: what was seen is what was there before."""
    desk.pause = asyncio.Event()
    desk.write(1)
    looking = asyncio.create_task(desk.watcher.look())
    await desk.reloaded.wait()
    desk.write(2)
    desk.pause.set()
    await looking
    await desk.watcher.look()
    assert desk.reloads == 2


async def test_locked(desk: Desk) -> None:
    """A store that was locked when it was read is read again, until it was not."""
    desk.settled = False
    desk.write(1)
    for _ in range(2):
        await desk.watcher.look()
    desk.settled = True
    for _ in range(3):
        await desk.watcher.look()
    assert desk.reloads == 3


async def test_gone_and_back(desk: Desk) -> None:
    """A store that disappears and comes back is looked at both times."""
    desk.path.unlink()
    await desk.watcher.look()
    desk.write(1)
    await desk.watcher.look()
    assert desk.reloads == 2


async def test_unusable(desk: Desk) -> None:
    """A store that can't be used is told once, tried again at every look, and used when it can be."""
    desk.problem = StoreProblem("It is damaged.", code="corrupt")
    desk.write(1)
    for _ in range(3):
        await desk.watcher.look()
    assert desk.reloads == 3
    assert desk.told == [StoreTrouble("corrupt", "It is damaged.")]
    desk.problem = None
    await desk.watcher.look()
    await desk.watcher.look()
    assert desk.reloads == 4


async def test_another_problem(desk: Desk) -> None:
    """Another problem with the same store is told too, and the same one with another version of it."""
    desk.problem = StoreProblem("It is damaged.", code="corrupt")
    desk.write(1)
    await desk.watcher.look()
    desk.problem = StoreProblem("It is locked.", code="lock_busy")
    await desk.watcher.look()
    desk.write(2)
    await desk.watcher.look()
    assert [event.code for event in desk.told if isinstance(event, StoreTrouble)] == [
        "corrupt",
        "lock_busy",
        "lock_busy",
    ]


async def test_runs(tmp_path: Path) -> None:
    """The watcher looks by itself, every so often, and ends when it is cancelled."""
    desk = Desk(tmp_path, interval=0.01)
    async with background(watcher=desk.watcher.run):
        for version in (1, 2):
            desk.reloaded.clear()
            desk.write(version)
            await asyncio.wait_for(desk.reloaded.wait(), 5)
    assert "watcher" not in {task.get_name() for task in asyncio.all_tasks()}
