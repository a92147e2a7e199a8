"""Clocks that jump, and a machine or a process that sleeps longer than a token lives."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import PATIENCE, Home, provider_store, proxy_running
from tests.sim.harness import Sim, running
from tests.survival.scene import (
    MACHINE,
    ask,
    assert_intact,
    assert_refused,
    assert_served,
    queue_fault,
    wait_until_served,
    write_due_login,
)
from tests.test_workers import fact, wait_until

DAY = 86400.0
NIGHT = 8 * 3600.0


def set_ahead(clock: Path, seconds: float) -> None:
    """From the next moment on the wall clock of whoever looks at the file is ahead by so much."""
    new = clock.with_suffix(".new")
    new.write_text(str(seconds))
    new.replace(clock)


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    path = tmp_path / "clock"
    set_ahead(path, 0)
    return path


@pytest.fixture
def sim(clock: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sim]:
    """A simulator that lives by the same clock: when that jumps, the machine has slept."""
    monkeypatch.setenv("PYTHONPATH", str(MACHINE))
    monkeypatch.setenv("SURVIVAL_CLOCK", str(clock))
    with running() as sim:
        yield sim


@pytest.mark.parametrize("jump", [DAY, -DAY, 30 * DAY], ids=["forward", "back", "a month forward"])
def test_wall_clock_jumps(home: Home, own_sim: Sim, clock: Path, jump: float) -> None:
    """A clock that jumps away and back again costs one refresh at most, and no request."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PYTHONPATH=MACHINE, SURVIVAL_CLOCK=clock) as proxy:
        for ahead in (0.0, jump, 0.0):
            set_ahead(clock, ahead)
            for _ in range(10):
                assert_served(proxy)
        counters = own_sim.counters()
        assert counters["refreshes"] <= 1
        assert_intact(home, own_sim)


def test_machine_sleeps_for_a_night(home: Home, sim: Sim, clock: Path) -> None:
    """After a suspend longer than the token's life the first request is answered, for one refresh."""
    home.write_store(provider_store(sim.login()))
    with proxy_running(home, sim, PYTHONPATH=MACHINE, SURVIVAL_CLOCK=clock) as proxy:
        assert_served(proxy)
        set_ahead(clock, NIGHT)
        assert_served(proxy)
        counters = sim.counters()
        assert (counters["refreshes"], counters["stale_rejections"]) == (1, 0)
        assert_intact(home, sim)


@pytest.mark.parametrize("grace", [2 * NIGHT, 0], ids=["taken again", "lost"])
def test_machine_sleeps_during_a_refresh(home: Home, sim: Sim, clock: Path, grace: float) -> None:
    """An answer that a suspend cost is asked for once more, since nothing is left; lost, that is told."""
    sim.patch(grace=grace, token_delay=1)
    write_due_login(home, sim)
    queue_fault(sim, "drop-after")
    with proxy_running(home, sim, PYTHONPATH=MACHINE, SURVIVAL_CLOCK=clock) as proxy:
        sim.http.get(f"/_sim/wait?counter=token_requests&n=1&timeout={PATIENCE}").raise_for_status()
        set_ahead(clock, NIGHT)
        proxy.err.wait_for(r"\[suspended\]")
        sim.patch(token_delay=0)
        if grace:
            wait_until_served(proxy)
            assert_intact(home, sim)
        else:
            proxy.err.wait_for(r"\[invalid_grant\]")
            for _ in range(3):
                assert "answer to an earlier refresh was lost" in assert_refused(proxy, "invalid_grant")
            assert sim.counters()["token_requests"] == 2


def test_process_stopped_longer_than_the_token_lives(home: Home, own_sim: Sim) -> None:
    """A process that stands still until its token has expired answers what waits for it, for one refresh."""
    tokens = own_sim.login(access_lifetime=4)
    home.write_store(provider_store(tokens))
    with proxy_running(home, own_sim) as proxy, ThreadPoolExecutor(1) as pool:
        proxy.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: fact(proxy.process.pid, "State") == "T")
        waiting = pool.submit(ask, proxy)
        wait_until(lambda: own_sim.status_of(tokens["access_token"]) != 200)
        proxy.process.send_signal(signal.SIGCONT)
        assert waiting.result(PATIENCE).status_code == 200
        assert own_sim.counters()["refreshes"] == 1
        assert_intact(home, own_sim)
