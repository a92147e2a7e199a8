"""A token endpoint that fails in every way while an access token is still good, and then does not."""

from __future__ import annotations

import pytest

from tests.harness import Home, proxy_running
from tests.sim.harness import Sim
from tests.survival.scene import (
    REFRESHED,
    assert_intact,
    assert_refused,
    assert_served,
    expire_access,
    queue_fault,
    write_due_login,
)

FAILURES = (
    "429",
    "500",
    "502-html",
    "403-html",
    "empty",
    "malformed",
    "nested-error",
    "nonstring-error",
    "temporarily_unavailable",
    "drop-before",
)
"""Without a rotation."""


@pytest.mark.parametrize("fault", FAILURES)
def test_fails_before_it_rotates(home: Home, own_sim: Sim, fault: str) -> None:
    """It is asked once more after a pause, not sooner, while the token in use serves every request."""
    write_due_login(home, own_sim)
    queue_fault(own_sim, fault)
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for("could not be refreshed")
        for _ in range(5):
            assert_served(proxy)
        proxy.err.wait_for(REFRESHED)
        assert_served(proxy)
        counters = own_sim.counters()
        assert (counters["token_requests"], counters["refreshes"]) == (2, 1)
        assert_intact(home, own_sim)


def test_hangs(home: Home, own_sim: Sim) -> None:
    """An answer that does not come is given up after 20 s, in which the token in use serves."""
    write_due_login(home, own_sim)
    queue_fault(own_sim, "hang")
    with proxy_running(home, own_sim) as proxy:
        assert_served(proxy)
        proxy.err.wait_for(r"\[timeout\]")
        assert_served(proxy)
        proxy.err.wait_for(REFRESHED)
        assert own_sim.counters()["token_requests"] == 2
        assert_intact(home, own_sim)


def test_drops_after_it_rotated(home: Home, own_sim: Sim) -> None:
    """An answer lost after the rotation is asked for again within the server's grace, and the login kept."""
    own_sim.patch(grace=60)
    write_due_login(home, own_sim)
    queue_fault(own_sim, "drop-after")
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for(r"\[broken_off\]")
        assert_served(proxy)
        proxy.err.wait_for(REFRESHED)
        assert_served(proxy)
        counters = own_sim.counters()
        assert (counters["token_requests"], counters["refreshes"]) == (2, 1)
        assert_intact(home, own_sim)


def test_drops_after_it_rotated_without_grace(home: Home, own_sim: Sim) -> None:
    """A server that takes no link twice ends the login by that: told, for one more call and no other."""
    write_due_login(home, own_sim)
    queue_fault(own_sim, "drop-after")
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for(r"\[invalid_grant\]")
        expire_access(own_sim)
        for _ in range(5):
            assert "answer to an earlier refresh was lost" in assert_refused(proxy, "invalid_grant")
        assert own_sim.counters()["token_requests"] == 2
