"""PROXY_WORKERS: several processes behind one port that share one login."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from httpx import RemoteProtocolError

from grok_oauth_proxy.workers import Workers
from tests.harness import (
    PATIENCE,
    Home,
    Output,
    Proxy,
    ending,
    environment,
    provider_store,
    proxy_running,
    run,
    start,
)
from tests.sim.harness import Sim, client

LOGIN_LIFETIME = 3600


def children_of(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def workers_of(proxy: Proxy) -> set[int]:
    return children_of(proxy.process.pid)


def wait_until(holds: Callable[[], bool]) -> None:
    """For what tells nobody that it has happened."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refuses(proxy: Proxy) -> bool:
    """Whether nobody listens any more."""
    try:
        proxy.dial().close()
    except ConnectionRefusedError:
        return True
    return False


def fact(pid: int, name: str) -> str:
    """What the kernel tells of a process under this name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


@contextmanager
def stopped(pids: set[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: all(fact(pid, "State") == "T" for pid in pids))
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def stream_open(proxy: Proxy, pause: float) -> Iterator[Iterator[str]]:
    """The lines of an answer that has begun; the API pauses so many seconds between any two of its parts."""
    question = {"model": "grok-4", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    slow = {"x-sim": f"chunk-delay={pause}"}
    with (
        client(proxy.url, timeout=PATIENCE) as http,
        http.stream("POST", "/v1/chat/completions", json=question, headers=slow) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        yield lines


def ask(proxy: Proxy, number: int) -> list[int]:
    """The statuses of requests over as many connections."""

    def one(_: int) -> int:
        with client(proxy.url, timeout=PATIENCE) as http:
            return http.post("/v1/echo").status_code

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, range(number)))


def metrics_with(proxy: Proxy, *samples: str) -> str:
    """The metrics once they hold these samples: an answer counts a moment after it was given."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with client(proxy.url, timeout=PATIENCE) as http:
            text = http.get("/metrics").text
        if all(f"\n{sample}\n" in text for sample in samples):
            return text
        time.sleep(0.1)  # so that the workers asked before have counted this question as over
    raise AssertionError(text)


def test_metrics_add_up(home: Home, own_sim: Sim) -> None:
    """Whichever worker is asked, it tells what all have counted, heard and use, and the life of the token."""
    home.write_store(provider_store(own_sim.login(access_lifetime=LOGIN_LIFETIME)))
    with proxy_running(home, own_sim, PROXY_WORKERS=3) as proxy:
        assert len(workers_of(proxy)) == 3
        assert ask(proxy, 60) == [200] * 60
        for _ in range(6):
            text = metrics_with(
                proxy,
                'proxy_requests_total{method="POST",route="other",status="200"} 60.0',
                "proxy_requests_in_flight 1.0",
            )
            left = float(text.split("\nproxy_token_seconds_to_expiry ")[1].split("\n")[0])
            assert LOGIN_LIFETIME - 300 < left <= LOGIN_LIFETIME
        told = {"x-sim": "reject=quota-429"}
        question = {"model": "grok-4", "messages": [{"role": "user", "content": "x"}]}
        assert proxy.http.post("/v1/chat/completions", json=question).status_code == 200
        assert proxy.http.post("/v1/chat/completions", json=question, headers=told).status_code == 429
        samples = (
            'proxy_account_refused{kind="quota"} 1.0',
            "proxy_rate_limit_remaining_requests 479.0",
            "proxy_credentials_usable 1.0",
            "proxy_grant_dead 0.0",
        )
        for _ in range(3):
            text = metrics_with(proxy, *samples)
            memory, files, began = (
                float(text.split(f"\nprocess_{name} ")[1].split("\n")[0])
                for name in ("resident_memory_bytes", "open_fds", "start_time_seconds")
            )
            assert memory > 4 * 20_000_000  # of the workers, and of the process that started them
            assert files > 4 * 5
            assert time.time() - 60 < began < time.time()


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


def test_a_worker_that_hangs_is_replaced(home: Home, own_sim: Sim) -> None:
    """One whose event loop stands still is killed, also at the end, where it would keep the others."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_WORKERS=2, WATCHDOG_USEC=4_000_000) as proxy:
        hung = min(workers_of(proxy))
        os.kill(hung, signal.SIGSTOP)
        proxy.err.wait_for(f"Worker {hung} has given no sign of life for 4 s: it is killed")
        wait_until(lambda: hung not in workers_of(proxy) and len(workers_of(proxy)) == 2)
        assert ask(proxy, 20) == [200] * 20
        os.kill(min(workers_of(proxy)), signal.SIGSTOP)
        assert proxy.stop() == 0


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


def test_ctrl_c(home: Home, own_sim: Sim) -> None:
    """Ctrl-C, which a terminal sends to all of them, lets the answers that are open end."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, by=("setsid",), PROXY_WORKERS=2) as proxy:
        with stream_open(proxy, 0.1) as lines:
            # Stopped, a worker takes two signals in the order that does the most harm.
            term = 1 << (signal.SIGTERM - 1)
            workers = workers_of(proxy)
            with stopped(workers):
                os.killpg(proxy.process.pid, signal.SIGINT)
                wait_until(lambda: all(int(fact(pid, "ShdPnd"), 16) & term for pid in workers))
            assert "data: [DONE]" in list(lines)
        assert proxy.process.wait(PATIENCE) == 0
        assert "Traceback" not in proxy.err.text()


def test_ctrl_c_again(home: Home, own_sim: Sim) -> None:
    """A second Ctrl-C cuts the answers that are open, and a refresh in flight is saved."""
    home.write_store(provider_store(own_sim.login(access_lifetime=4)))
    before = home.refresh_tokens()
    with proxy_running(home, own_sim, PROXY_WORKERS=2) as proxy:
        own_sim.http.post("/_sim/token-faults", json={"kind": "slow=4", "times": 1}).raise_for_status()
        with stream_open(proxy, 20) as lines:
            own_sim.http.get("/_sim/wait?counter=refreshes&n=1&timeout=10", timeout=15).raise_for_status()
            proxy.process.send_signal(signal.SIGINT)
            wait_until(lambda: refuses(proxy))
            proxy.process.send_signal(signal.SIGINT)
            assert proxy.process.wait(15) == 0  # an open answer would get 30 s
            with pytest.raises(RemoteProtocolError):
                list(lines)
        assert "Traceback" not in proxy.err.text()
    assert home.refresh_tokens() != before
    assert own_sim.refresh(home.refresh_tokens().pop()).status_code == 200


def test_ended_while_starting(home: Home, own_sim: Sim) -> None:
    """SIGTERM before the first worker serves ends all with exit code 0 and nothing said."""
    home.write_store(provider_store(own_sim.login()))
    with ending(start(environment(home, own_sim, PROXY_WORKERS=2))) as process:
        err = Output(process.stderr)
        wait_until(lambda: bool(children_of(process.pid)))
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert err.text() == ""


def test_failed_spawn(home: Home, own_sim: Sim) -> None:
    """A replacement that the system cannot start is told in one line and tried again; the others serve on."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_WORKERS=2) as proxy:
        pid = proxy.process.pid
        before = workers_of(proxy)
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, limits[1]))
        os.kill(min(before), signal.SIGKILL)
        proxy.err.wait_for("A worker cannot be started: Too many open files; another one is started in 2 s")
        assert ask(proxy, 4) == [200] * 4
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        wait_until(lambda: len(workers_of(proxy)) == 2)
        assert proxy.stop() == 0
        assert "Traceback" not in proxy.err.text()


def test_refused_replacement(home: Home, own_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A replacement that may not start is tried again after growing pauses and leaves no files behind."""
    scratch = tmp_path_factory.mktemp("scratch")
    store = provider_store(own_sim.login())
    home.write_store(store)
    with proxy_running(home, own_sim, PROXY_WORKERS=2, TMPDIR=scratch) as proxy:
        first, second = workers_of(proxy)
        home.auth.unlink()
        home.state.unlink()
        os.kill(first, signal.SIGKILL)
        for pause in (1, 2, 4):
            proxy.err.wait_for(f"A worker has ended with code .*; another one is started in {pause} s")
        counted = {path.stem.rpartition("_")[2] for path in scratch.rglob("*.db")}
        assert counted == {str(first), str(second)}
        home.write_store(store)
        wait_until(lambda: len(workers_of(proxy)) == 2)


def test_nobody_left(home: Home, own_sim: Sim) -> None:
    """When the last worker has ended and may not start again, so does the service, with its exit code."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_WORKERS=2) as proxy:
        home.auth.unlink()
        home.state.unlink()
        for pid in workers_of(proxy):
            os.kill(pid, signal.SIGKILL)
        assert proxy.process.wait(PATIENCE) == 3
        assert "auth.json does not exist" in proxy.err.text()


def test_killed(home: Home, own_sim: Sim, tmp_path: Path) -> None:
    """When the process that started them is killed, the workers end as after a SIGTERM."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_WORKERS=2, TMPDIR=tmp_path) as proxy:
        proxy.process.kill()
        # The pipe ends when the last of those who hold it has ended.
        assert proxy.err.text()


def test_what_a_killed_one_leaves(home: Home, own_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A start removes the folder that a killed one left, but none in use, no link and no other name."""
    scratch = tmp_path_factory.mktemp("scratch")
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_WORKERS=2, TMPDIR=scratch) as proxy:
        proxy.process.kill()
        assert proxy.err.text()
    (left,) = scratch.iterdir()
    target = scratch / "target"
    target.mkdir()
    (target / "lock").touch()
    link = left.with_name(left.name + "-link")
    link.symlink_to(target)
    foreign = scratch / "grok-oauth-proxy-demo-1"
    foreign.mkdir()
    (foreign / "lock").touch()
    with proxy_running(home, own_sim, PROXY_WORKERS=2, TMPDIR=scratch) as proxy:
        kept = {*scratch.iterdir()}
        assert left not in kept
        assert {target, link, foreign} < kept
        with proxy_running(home, own_sim, PROXY_WORKERS=2, TMPDIR=scratch):
            assert kept < {*scratch.iterdir()}
        assert proxy.metric("proxy_requests_in_flight") == 1
    assert {*scratch.iterdir()} == {target, link, foreign}


def test_refused_start(home: Home, own_sim: Sim) -> None:
    """What keeps the workers from starting is told once, with its exit code."""
    ended = run(environment(home, own_sim, PROXY_WORKERS=3))
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert "auth.json does not exist" in line


class Told:
    """A worker that notes the signals it gets."""

    def __init__(self, name: str, told: list[tuple[str, signal.Signals]]) -> None:
        self.name, self.told = name, told

    def send_signal(self, number: signal.Signals) -> None:
        self.told.append((self.name, number))


def nothing() -> None:
    pass


def test_reload_while_one_starts() -> None:
    """A worker that starts during a reload may have the old ones: it is told once it serves."""
    told: list[tuple[str, signal.Signals]] = []
    workers = Workers(3, [], "", dict, on_ready=nothing, on_end=nothing, on_hangup=nothing)
    first, second, third = (cast("Process", Told(name, told)) for name in ("first", "second", "third"))
    workers._running |= {first, second, third}  # noqa: SLF001 - no process can be made to start at the right moment
    workers._serves(first)  # noqa: SLF001
    workers._hang_up()  # noqa: SLF001
    assert told == [("first", signal.SIGHUP)]
    workers._serves(second)  # noqa: SLF001
    assert told[1:] == [("second", signal.SIGHUP)]
    workers._hang_up()  # noqa: SLF001
    assert told.count(("second", signal.SIGHUP)) == 2
    workers._serves(third)  # noqa: SLF001
    assert told.count(("third", signal.SIGHUP)) == 1


def test_reload_that_fails_over_them(caplog: pytest.LogCaptureFixture) -> None:
    """The workers are told of SIGHUP also where the process over them could not read its settings."""
    told: list[tuple[str, signal.Signals]] = []

    def fails() -> None:
        raise RuntimeError

    workers = Workers(1, [], "", dict, on_ready=nothing, on_end=nothing, on_hangup=fails)
    worker = cast("Process", Told("one", told))
    workers._running.add(worker)  # noqa: SLF001 - nothing known makes that reading fail
    workers._serves(worker)  # noqa: SLF001
    workers._hang_up()  # noqa: SLF001
    assert told == [("one", signal.SIGHUP)]
    assert "A signal was not answered." in caplog.text
