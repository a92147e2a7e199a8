"""One simulator process for the whole folder, put back to its first state before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Sim, running


@pytest.fixture(scope="session")
def sim_process() -> Iterator[Sim]:
    with running() as sim:
        yield sim


@pytest.fixture
def sim(sim_process: Sim) -> Sim:
    sim_process.reset()
    sim_process.patch(chunk_delay=0)
    return sim_process
