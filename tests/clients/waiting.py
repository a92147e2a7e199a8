"""Waiting for the simulator to have seen something."""

from __future__ import annotations

from tests.harness import PATIENCE
from tests.sim.harness import Sim


def wait_for_counter(sim: Sim, counter: str, *, at_least: int = 0, at_most: int = 1_000_000) -> None:
    """Return as soon as the counter is within its bounds; fails when it does not get there."""
    wait: dict[str, str | int] = {"counter": counter, "n": at_least, "max": at_most, "timeout": 5}
    seen = sim.http.get("/_sim/wait", params=wait, timeout=PATIENCE).json()
    assert seen["reached"], seen
