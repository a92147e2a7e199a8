"""Two machines, and one simulator for each test module: exporting and importing disturb no other grant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.moving.side import Side
from tests.sim.harness import Sim


@pytest.fixture
def here(tmp_path: Path, shared_sim: Sim) -> Side:
    return Side.at(tmp_path / "here", shared_sim)


@pytest.fixture
def there(tmp_path: Path, shared_sim: Sim) -> Side:
    return Side.at(tmp_path / "there", shared_sim)
