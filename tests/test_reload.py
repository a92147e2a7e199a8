"""SIGHUP: settings that may change and the stores are read again, and nobody's request is disturbed."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.harness import (
    PATIENCE,
    Home,
    Output,
    Proxy,
    ending,
    environment,
    provider_store,
    proxy_running,
    start,
)
from tests.sim.harness import Sim, client
from tests.test_workers import stopped, wait_until, workers_of

AGAIN = "The settings were read again"
KEY = "canary-key-0123456789"
AT_TERMINAL = "import os, sys; os.dup2(int(sys.argv[1]), 0); os.execv(sys.argv[2], sys.argv[2:])"
"""Runs the command behind it with a terminal as its standard input."""


def write_settings(home: Home, *lines: str) -> Path:
    path = home.path / ".config/grok-oauth-proxy.env"
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_reload(home: Home, own_sim: Sim, workers: int) -> None:
    """After SIGHUP the file's settings count, for open connections too, and the log tells their names.

    What only a restart heeds is told; bad settings are told, and all stays as it was.
    """
    home.write_store(provider_store(own_sim.login()))
    write_settings(home, "LOG_LEVEL=warning", "PROXY_ALLOWED_HOSTS=old.example")
    with proxy_running(home, own_sim, PROXY_WORKERS=workers) as proxy, client(proxy.url) as http:

        def asked(path: str = "/v1/models", **headers: str) -> int:
            return http.get(path, headers=headers).status_code

        def reload(*lines: str, says: str) -> str:
            write_settings(home, *lines)
            seen = len(proxy.err.lines)
            proxy.process.send_signal(signal.SIGHUP)
            for _ in range(workers):
                said = proxy.err.wait_for(says, after=seen)
                seen = proxy.err.lines.index(said.string, seen) + 1
            return said.string

        assert (asked(), asked(Host="old.example"), asked(Host="new.example")) == (200, 200, 421)
        assert not proxy.err.lines[workers:]
        said = reload("PROXY_ALLOWED_HOSTS=new.example", f"PROXY_API_KEY={KEY}", "PROXY_PORT=1", says=AGAIN)
        assert said.endswith("Changed: LOG_LEVEL, PROXY_ALLOWED_HOSTS, PROXY_API_KEY.")
        assert (asked(), asked(authorization=f"Bearer {KEY}")) == (401, 200)
        assert asked(authorization=f"Bearer {KEY}", Host="old.example") == 421
        said = reload("PROXY_APIKEY=x", says="The settings stay as they were")
        assert "Did you mean PROXY_API_KEY?" in said
        assert (asked(), asked(authorization=f"Bearer {KEY}")) == (401, 200)
        reload("UPSTREAM_READ_TIMEOUT=5", says="only a restart heeds it: UPSTREAM_READ_TIMEOUT")
        assert asked() == 200
        assert proxy.stop() == 0
    assert KEY not in proxy.err.text()


def is_replaced(proxy: Proxy, worker: int) -> bool:
    now = workers_of(proxy)
    return worker not in now and len(now) == 2


def test_replaced_worker(home: Home, own_sim: Sim) -> None:
    """A worker that is replaced goes by what the others go by, and not by what the file says by now."""
    home.write_store(provider_store(own_sim.login()))
    write_settings(home, "PROXY_ALLOWED_HOSTS=old.example")
    with proxy_running(home, own_sim, PROXY_WORKERS=2) as proxy:
        elsewhere = home.path / "elsewhere/auth_state.json"
        write_settings(home, "PROXY_ALLOWED_HOSTS=new.example", f"GROK_PROXY_AUTH_STATE={elsewhere}")
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: sum(AGAIN in line for line in proxy.err.lines) == 2)
        for unheeded in ("PROXY_DRAIN_TIMEOUT=soon", "PROXY_ALLOWED_HOSTS=newest.example"):
            write_settings(home, unheeded)
            first, *others = sorted(workers_of(proxy))
            os.kill(first, signal.SIGKILL)
            wait_until(partial(is_replaced, proxy, first))
            with stopped(set(others)), client(proxy.url, timeout=PATIENCE) as http:  # so the new one answers
                assert http.get("/v1/models", headers={"host": "new.example"}).status_code == 200
                assert http.get("/v1/models", headers={"host": "newest.example"}).status_code == 421
        assert not elsewhere.parent.exists()


@contextmanager
def stream_open(http: httpx.Client) -> Iterator[Iterator[str]]:
    """The lines that are still to come of an answer that has begun."""
    question = {"model": "grok-4", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    slow = {"x-sim": "chunk-delay=0.1"}
    with http.stream("POST", "/v1/chat/completions", json=question, headers=slow) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield lines


def test_open_answers_go_on(home: Home, own_sim: Sim) -> None:
    """A stream that is open while the settings are read again comes to its end."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy, stream_open(proxy.http) as lines:
        proxy.process.send_signal(signal.SIGHUP)
        proxy.err.wait_for(AGAIN)
        assert "data: [DONE]" in [*lines]


def test_the_store_is_read_again(home: Home, own_sim: Sim) -> None:
    """A login that was made meanwhile is in use at once, however rarely the store is looked at."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, HERMES_POLL_INTERVAL=3600) as proxy:
        home.write_store(provider_store(own_sim.login(access_lifetime=7200)))
        proxy.process.send_signal(signal.SIGHUP)
        proxy.err.wait_for("Tokens written by .* are now in use")
        assert proxy.http.get("/v1/models").status_code == 200


def test_no_open_door(home: Home, own_sim: Sim) -> None:
    """Where others can come in, the key cannot be taken away by a reload."""
    home.write_store(provider_store(own_sim.login()))
    write_settings(home, f"PROXY_API_KEY={KEY}")
    with proxy_running(home, own_sim, PROXY_HOST="0.0.0.0") as proxy:
        write_settings(home)
        proxy.process.send_signal(signal.SIGHUP)
        proxy.err.wait_for("The settings stay as they were: PROXY_HOST 0.0.0.0 is open to other machines")
        assert proxy.http.get("/v1/models").status_code == 401


@pytest.mark.parametrize("workers", [1, 2])
def test_closed_terminal(home: Home, own_sim: Sim, workers: int) -> None:
    """SIGHUP ends a daemon that was started at a terminal as cleanly as SIGTERM.

    A terminal that is closed sends it twice, by the shell and by the system; open answers are not cut for it.
    """
    home.write_store(provider_store(own_sim.login()))
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    try:
        env = environment(home, own_sim, PROXY_WORKERS=workers)
        # As it is where nobody ran the tests with nohup.
        heeding = f"import signal; signal.signal(1, signal.SIG_DFL); {AT_TERMINAL}"
        with ending(start(env, by=(sys.executable, "-c", heeding, str(theirs)))) as process:
            err = Output(process.stderr)
            with client(err.wait_for(r"ready: (http://\S+)/v1")[1]) as http, stream_open(http) as lines:
                process.send_signal(signal.SIGHUP)
                err.wait_for("Ending: open answers")
                process.send_signal(signal.SIGHUP)
                assert "data: [DONE]" in [*lines]
            assert process.wait(PATIENCE) == 0
    finally:
        os.close(ours)
        os.close(theirs)


def test_told_while_it_starts(home: Home, own_sim: Sim) -> None:
    """SIGHUP while the login is waited for ends nothing: the settings are read again once it serves."""
    home.write_store(provider_store(own_sim.login()))
    with home.auth.with_name("auth.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ending(start(environment(home, own_sim))) as process:
            status = Path(f"/proc/{process.pid}/status")
            while not _caught(status.read_text()) & 1 << signal.SIGHUP - 1:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGHUP)
            fcntl.flock(lock, fcntl.LOCK_UN)
            err = Output(process.stderr)
            err.wait_for("ready: ")
            err.wait_for(AGAIN)


def _caught(status: str) -> int:
    """The signals that a process answers itself."""
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))


def test_nohup(home: Home, own_sim: Sim) -> None:
    """Started at a terminal by what keeps SIGHUP from it, it survives that, and reads its settings again."""
    home.write_store(provider_store(own_sim.login()))
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    by = (
        sys.executable,
        "-c",
        f"import signal; signal.signal(1, signal.SIG_IGN); {AT_TERMINAL}",
        str(theirs),
    )
    try:
        with proxy_running(home, own_sim, by=by) as proxy:
            proxy.process.send_signal(signal.SIGHUP)
            proxy.err.wait_for(AGAIN)
            assert proxy.http.get("/health").status_code == 200
    finally:
        os.close(ours)
        os.close(theirs)
