"""Fixtures for whole-process tests: a simulator for all, a proxy a module, a simulator for a test alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Home, Proxy, provider_store, proxy_running
from tests.sim.harness import Sim, running

SLOW = ("test_short_lived_tokens.py", "tests", "survival", "hermes", "cli", "moving", "clients")
"""A file of two minutes, and the folders whose tests mostly wait for processes, the slowest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first: at the end no worker is left alone with a long one."""
    rank = {name: place for place, name in enumerate(SLOW)}

    def place(item: pytest.Item) -> int:
        return min(rank.get(name, len(SLOW)) for name in (item.path.name, item.path.parent.name))

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared_sim() -> Iterator[Sim]:
    with running() as sim:
        sim.patch(chunk_delay=0)
        yield sim


@pytest.fixture(scope="module")
def shared_proxy(shared_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy with a login that lives for hours, for tests that do not disturb it."""
    home = Home(tmp_path_factory.mktemp("home"))
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(home, shared_sim) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def _lent_sim() -> Iterator[Sim]:
    with running() as sim:
        yield sim


@pytest.fixture
def own_sim(_lent_sim: Sim) -> Sim:
    """A simulator without a past, for this test alone."""
    _lent_sim.reset()
    _lent_sim.patch(chunk_delay=0)
    return _lent_sim


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)
