"""No network, no names, and a captive portal in xAI's place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.harness import Home, Proxy, provider_store, proxy_running
from tests.sim.harness import Sim, running
from tests.survival.road import PORTAL, Road
from tests.survival.scene import (
    MACHINE,
    REFRESHED,
    ask,
    assert_intact,
    assert_served,
    wait_until_served,
    write_due_login,
)

OUTAGE = 12.0
"""Seconds beyond the token's life. For a whole hour, by a simulated clock, see tests/credentials."""
SOON = 10.0
"""Seconds in which everything works again. The longest pause between two tries is five."""


@pytest.fixture
def road() -> Iterator[Road]:
    with Road.to(0) as road:
        yield road


@pytest.fixture
def sim(road: Road) -> Iterator[Sim]:
    """A simulator at the end of the road, which calls itself by the name it has at the other end."""
    with running("--public-issuer", road.url) as sim:
        assert sim.http.base_url.port
        road.destination = sim.http.base_url.port
        yield sim


def away(home: Home) -> Path:
    """While this file is there, no name is resolved."""
    return home.path / "no-names"


def proxy_by_road(road: Road, home: Home, sim: Sim) -> AbstractContextManager[Proxy]:
    return proxy_running(
        home,
        sim,
        XAI_BASE_URL=f"{road.url}/v1",
        XAI_OAUTH_ISSUER=road.url,
        PYTHONPATH=MACHINE,
        SURVIVAL_NO_NAMES=away(home),
    )


def end_network(road: Road, proxy: Proxy, kind: str) -> None:
    if kind == "network":
        road.close()
    else:
        away(proxy.home).touch()
    while ask(proxy).status_code == 200:  # a connection may have been on its way
        road.cut()


def mend_network(road: Road, home: Home, kind: str) -> None:
    if kind == "network":
        road.open_again()
    else:
        away(home).unlink()


@pytest.mark.parametrize("kind", ["network", "names"])
def test_network_gone(home: Home, sim: Sim, road: Road, kind: str) -> None:
    """Without a network requests fail at once and nothing is spent; back, all goes on within seconds."""
    home.write_store(provider_store(sim.login()))
    with proxy_by_road(road, home, sim) as proxy:
        assert_served(proxy)
        end_network(road, proxy, kind)
        home.write_store(provider_store(sim.login(access_lifetime=1)))  # it is due at once
        proxy.err.wait_for(r"\[unreachable\]")
        deadline = time.monotonic() + OUTAGE
        while time.monotonic() < deadline:
            began = time.monotonic()
            assert ask(proxy).status_code in (502, 503)
            assert time.monotonic() - began < 5
            time.sleep(0.5)
        assert sim.counters()["token_requests"] == 0
        mend_network(road, home, kind)
        began = time.monotonic()
        wait_until_served(proxy)
        assert time.monotonic() - began < SOON
        assert sim.counters()["token_requests"] == 1
        assert_intact(home, sim)


@pytest.mark.parametrize("status", [200, 302])
def test_captive_portal(home: Home, sim: Sim, road: Road, status: int) -> None:
    """A portal's page is no verdict: clients see it as it is, and the login is refreshed once it is gone."""
    write_due_login(home, sim)
    road.portal = status
    with proxy_by_road(road, home, sim) as proxy:
        proxy.err.wait_for("could not be refreshed")
        answer = ask(proxy)
        assert (answer.status_code, answer.content) == (status, PORTAL)
        assert sim.counters()["token_requests"] == 0
        road.portal = None
        road.cut()
        proxy.err.wait_for(REFRESHED)
        assert_served(proxy)
        assert sim.counters()["token_requests"] == 1
        assert_intact(home, sim)
