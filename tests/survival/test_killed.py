"""SIGKILL at every step of a refresh, and what those who come after make of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.harness import PATIENCE, Home, Json, Proxy, provider_store, proxy_running
from tests.sim.harness import Sim
from tests.survival.scene import MACHINE
from tests.test_workers import workers_of

GRACE = 60

KEPT = {
    "before it is noted": ("open .auth.json.*.tmp 1", 0),  # of the rehearsal
    "before it is sent": ("open grok-oauth-proxy 1", 0),  # the folder is synced: it is noted
    "between the two writes": ("open .hermes 1", 1),  # the folder is synced: the store is written
    "after both": ("open grok-oauth-proxy 2", 1),
}
"""Steps at which the newest link is on the disk, and how often the server has rotated by then."""
UNSAVED = "os.rename auth.json 1"
BY = pytest.mark.parametrize("workers", [1, 2], ids=["proxy", "worker"])


@contextmanager
def doomed(home: Home, sim: Sim, step: str, workers: int) -> Iterator[Proxy]:
    """A proxy that answers its next request with a refresh, and is killed at this step of it.

    Of several workers it is the one that refreshes.
    """
    home.write_store(provider_store(sim.login()))
    armed = home.path / "armed"
    with proxy_running(
        home,
        sim,
        PROXY_WORKERS=workers,
        PYTHONPATH=MACHINE,
        SURVIVAL_KILL_AT=step,
        SURVIVAL_ARMED=armed,
    ) as proxy:
        sim.http.post("/_sim/expire-access").raise_for_status()
        armed.touch()
        yield proxy


def cut_off(proxy: Proxy) -> None:
    """A request that dies with the process that answers it."""
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        proxy.http.post("/v1/echo")


@contextmanager
def successor(proxy: Proxy, sim: Sim, workers: int = 1) -> Iterator[Proxy]:
    """Who goes on: the other worker and the replacement, or a proxy that is started anew."""
    if workers > 1:
        proxy.err.wait_for("A worker has ended with code -9")
        yield proxy
        return
    assert proxy.process.wait(PATIENCE) == -signal.SIGKILL
    with proxy_running(proxy.home, sim) as another:
        yield another


def assert_alive(proxy: Proxy, sim: Sim) -> None:
    """It serves without a new login, and what Hermes finds in its store is the living link."""
    assert proxy.http.post("/v1/echo").status_code == 200
    counters = sim.counters()
    assert (counters["refreshes"], counters["reuses"], counters["revocations"]) == (1, 0, 0)
    (living,) = proxy.home.refresh_tokens()
    assert sim.refresh(living).status_code == 200


def assert_told_as_lost(proxy: Proxy, sim: Sim) -> None:
    """Every request is told what to do, and all of them together cost one call to the token endpoint."""
    before = sim.counters()["token_requests"]
    for _ in range(5):
        answer = proxy.http.post("/v1/echo")
        error: Json = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (503, "invalid_grant")
        assert "The answer to an earlier refresh was lost" in error["message"]
        assert "Sign in again with `hermes auth add xai-oauth`" in error["message"]
    assert sim.counters()["token_requests"] == before + 1


@BY
@pytest.mark.parametrize("step", KEPT)
def test_link_on_disk(home: Home, own_sim: Sim, step: str, workers: int) -> None:
    """Killed while the newest link is on the disk, it costs nothing but the request that was answered."""
    event, rotations = KEPT[step]
    with doomed(home, own_sim, event, workers) as proxy:
        cut_off(proxy)
        assert own_sim.counters()["refreshes"] == rotations
        with successor(proxy, own_sim, workers) as next_one:
            assert_alive(next_one, own_sim)


@BY
def test_answer_not_written(home: Home, own_sim: Sim, workers: int) -> None:
    """Killed with the answer in hand, the next one sends the link again while the server still takes it."""
    own_sim.patch(grace=GRACE)
    with doomed(home, own_sim, UNSAVED, workers) as proxy:
        cut_off(proxy)
        with successor(proxy, own_sim, workers) as next_one:
            assert_alive(next_one, own_sim)


def test_answer_not_written_without_grace(home: Home, own_sim: Sim) -> None:
    """Where the server takes the link no more, what the process had is told as lost, for one call."""
    with doomed(home, own_sim, UNSAVED, 1) as proxy:
        cut_off(proxy)
        with successor(proxy, own_sim) as next_one:
            assert_told_as_lost(next_one, own_sim)
            home.write_store(provider_store(own_sim.login()))
            next_one.err.wait_for("Tokens written by hermes are now in use")
            assert next_one.http.post("/v1/echo").status_code == 200


def killed_while_it_waits(proxy: Proxy, sim: Sim) -> None:
    """All its processes, while the server holds back the answer to a link that it has rotated."""
    sim.http.post("/_sim/token-faults", json={"kind": "slow=5", "times": 1}).raise_for_status()
    waiting = threading.Thread(target=cut_off, args=(proxy,))
    waiting.start()
    sim.http.get(f"/_sim/wait?counter=refreshes&n=1&timeout={PATIENCE}").raise_for_status()
    for pid in workers_of(proxy) or {proxy.process.pid}:
        os.kill(pid, signal.SIGKILL)
    waiting.join(PATIENCE)


@BY
def test_answer_not_read(home: Home, own_sim: Sim, workers: int) -> None:
    """Killed while the answer is on its way, the next one sends the link again within the server's grace."""
    own_sim.patch(grace=GRACE)
    with doomed(home, own_sim, "never nothing 1", workers) as proxy:
        killed_while_it_waits(proxy, own_sim)
        with successor(proxy, own_sim, workers) as next_one:
            assert_alive(next_one, own_sim)


def test_answer_not_read_without_grace(home: Home, own_sim: Sim) -> None:
    """Where the server takes the link no more, an answer nobody read is told as lost, for one call."""
    with doomed(home, own_sim, "never nothing 1", 1) as proxy:
        killed_while_it_waits(proxy, own_sim)
        with successor(proxy, own_sim) as next_one:
            assert_told_as_lost(next_one, own_sim)
