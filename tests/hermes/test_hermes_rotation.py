"""The main proof: Hermes and the proxy spend one chain of refresh tokens and never replay a link."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.harness import Proxy
from tests.hermes.rig import (
    LONG_LIFE,
    REFRESHED,
    SHAPES,
    SHORT_LIFE,
    Driver,
    Rig,
    Shape,
    chat,
    line_after,
    wait_until_fresh,
)

TURNS = 16
ROUNDS = 10
ROTATIONS = 50

RACING: dict[Shape, tuple[Shape, ...]] = {
    # Hermes spends a provider's grant through the mirror in the pool as well.
    "provider": ("provider", "provider", "pool"),
    "pool": ("pool", "pool", "pool"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_one_chain_for_all(rig: Rig, shape: Shape) -> None:
    """Hermes and the proxy refresh in turn, then three of Hermes and the proxy at once; nothing is lost."""
    rig.login(shape)
    with rig.proxy(HERMES_POLL_INTERVAL=0.1) as proxy, ExitStack() as stack:
        drivers = [stack.enter_context(rig.driver(way)) for way in RACING[shape]]
        for driver in drivers:
            driver.resolve()
        assert rig.sim.counters()["refreshes"] == 0

        for _ in range(TURNS):
            take_turns(rig, proxy, drivers[0])
        by_proxy = sum(REFRESHED in line for line in proxy.err.lines)
        assert by_proxy >= TURNS
        assert rig.sim.counters()["refreshes"] == TURNS + by_proxy

        race(rig, proxy, drivers)
        assert [rig.sim.status_of(driver.resolve()) for driver in drivers] == [200] * len(drivers)
        assert "hello" in chat(proxy)
        assert len(rig.home.refresh_tokens()) == 1
    counters = rig.sim.counters()
    assert (counters["reuses"], counters["revocations"]) == (0, 0)
    assert counters["refreshes"] >= ROTATIONS
    assert counters["logins"] == 1


def take_turns(rig: Rig, proxy: Proxy, driver: Driver) -> None:
    """Hermes refreshes and gets a token that will not last; the proxy adopts it and refreshes in its turn."""
    seen = len(proxy.err.lines)
    rig.sim.patch(access_lifetime=SHORT_LIFE)
    driver.refresh()
    rig.sim.patch(access_lifetime=LONG_LIFE)
    wait_until_fresh(proxy, seen)
    assert len(rig.home.refresh_tokens()) == 1  # a mirror that Hermes left behind is renewed as well
    assert "hello" in chat(proxy)


def race(rig: Rig, proxy: Proxy, drivers: list[Driver]) -> None:
    """Rounds in which everybody wants the lock at once; at the end the proxy holds a token for hours."""
    rig.sim.patch(access_lifetime=SHORT_LIFE, token_delay=0.05)  # long enough to meet one another
    with ThreadPoolExecutor(len(drivers)) as pool:
        rounds = 0
        # Of a pool's entry Hermes adopts what another process got, so not every refresh is a rotation.
        while rounds < ROUNDS or rig.sim.counters()["refreshes"] < ROTATIONS:
            seen = len(proxy.err.lines)
            assert all(pool.map(Driver.refresh, drivers))
            # Tokens that live for a second keep the proxy refreshing too, whoever is first.
            line_after(proxy.err, REFRESHED, seen)
            rounds += 1
    seen = len(proxy.err.lines)
    rig.sim.patch(access_lifetime=LONG_LIFE)
    wait_until_fresh(proxy, seen)
