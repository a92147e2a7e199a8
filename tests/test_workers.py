"""PROXY_WORKERS: several processes behind one port that share one login."""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import PATIENCE, Home, Proxy, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim, client

LOGIN_LIFETIME = 3600


def workers_of(proxy: Proxy) -> set[int]:
    pid = proxy.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def ask(proxy: Proxy, number: int) -> list[int]:
    """The statuses of requests over as many connections."""

    def one(_: int) -> int:
        with client(proxy.url, timeout=PATIENCE) as http:
            return http.post("/v1/echo").status_code

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, range(number)))


def quiet_metrics(proxy: Proxy) -> str:
    """The metrics once nothing but their own request is in flight: an answer counts after it was given."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with client(proxy.url, timeout=PATIENCE) as http:
            text = http.get("/metrics").text
        if "\nproxy_requests_in_flight 1.0\n" in text:
            return text
    raise AssertionError(text)


def test_metrics_add_up(home: Home, own_sim: Sim) -> None:
    """Whichever worker is asked, it tells the requests of all, and the life of the token."""
    home.write_store(provider_store(own_sim.login(access_lifetime=LOGIN_LIFETIME)))
    with proxy_running(home, own_sim, PROXY_WORKERS=3) as proxy:
        assert len(workers_of(proxy)) == 3
        assert ask(proxy, 60) == [200] * 60
        for _ in range(6):
            text = quiet_metrics(proxy)
            assert 'proxy_requests_total{method="POST",route="other",status="200"} 60.0' in text
            left = float(text.split("\nproxy_token_seconds_to_expiry ")[1].split("\n")[0])
            assert LOGIN_LIFETIME - 300 < left <= LOGIN_LIFETIME


def test_one_refresh_for_all(home: Home, own_sim: Sim) -> None:
    """A token that goes stale under load is refreshed once, whichever workers notice."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_WORKERS=3) as proxy:
        for number in (1, 2, 3):
            own_sim.http.post("/_sim/expire-access").raise_for_status()
            assert ask(proxy, 48) == [200] * 48
            assert own_sim.counters()["refreshes"] == number
        assert own_sim.counters()["reuses"] == 0


def test_short_lives(home: Home, own_sim: Sim) -> None:
    """Refreshes ahead of time are as many as lifetimes, not as workers."""
    home.write_store(provider_store(own_sim.login(access_lifetime=4)))
    own_sim.patch(access_lifetime=4)
    with proxy_running(home, own_sim, PROXY_WORKERS=3) as proxy:
        for number in (1, 2, 3):
            own_sim.http.get(f"/_sim/wait?counter=refreshes&n={number}&timeout={PATIENCE}").raise_for_status()
            assert ask(proxy, 12) == [200] * 12
        counters = own_sim.counters()
        assert counters["reuses"] == 0
        assert counters["refreshes"] <= 6


def test_a_worker_that_dies_is_replaced(home: Home, own_sim: Sim) -> None:
    """A worker that is killed is told, and another one takes its place."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_WORKERS=2) as proxy:
        before = workers_of(proxy)
        os.kill(min(before), signal.SIGKILL)
        proxy.err.wait_for("A worker has ended with code -9")
        assert ask(proxy, 20) == [200] * 20
        assert len(before & workers_of(proxy)) == 1


def test_the_end(home: Home, own_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> None:
    """SIGTERM ends all of them with exit code 0, and leaves no port, process, address or folder behind."""
    scratch = tmp_path_factory.mktemp("scratch")
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_WORKERS=2, TMPDIR=scratch) as proxy:
        workers = workers_of(proxy)
        assert proxy.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        host, port = proxy.url.removeprefix("http://").split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 5).close()
    assert not home.state.with_name("address").exists()
    assert list(scratch.iterdir()) == []


def test_killed(home: Home, own_sim: Sim, tmp_path: Path) -> None:
    """When the process that started them is killed, the workers end as after a SIGTERM."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_WORKERS=2, TMPDIR=tmp_path) as proxy:
        proxy.process.kill()
        # The pipe ends when the last of those who hold it has ended.
        assert proxy.err.text()


def test_refused_start(home: Home, own_sim: Sim) -> None:
    """What keeps the workers from starting is told once, with its exit code."""
    ended = run(environment(home, own_sim, PROXY_WORKERS=3))
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert "auth.json does not exist" in line
