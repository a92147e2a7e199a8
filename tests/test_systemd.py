"""What a service manager hands over and is told."""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from grok_oauth_proxy.systemd import Manager
from tests.harness import (
    PATIENCE,
    Home,
    Output,
    ending,
    environment,
    provider_store,
    proxy_running,
    run,
    start,
)
from tests.sim.harness import Sim

OPEN_FOR = """
import os, sys
for number, descriptor in enumerate(sys.argv[1].split(",")):
    os.dup2(int(descriptor), 3 + number)
os.environ["LISTEN_PID"] = sys.argv[2].replace("self", str(os.getpid()))
os.environ["LISTEN_FDS"] = str(number + 1)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Hands sockets to the command behind it, as systemd does."""


@contextmanager
def manager(home: Home, *, abstract: bool = False) -> Iterator[tuple[str, socket.socket]]:
    """A service manager's ear, and its address."""
    path = str(home.path / "notify")
    address = "@" + path.strip("/") if abstract else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("\0" + address[1:] if abstract else path)
        ear.settimeout(PATIENCE)
        yield address, ear


@pytest.mark.parametrize("abstract", [False, True], ids=["file", "abstract"])
@pytest.mark.parametrize("workers", [1, 2])
def test_readiness(home: Home, own_sim: Sim, workers: int, abstract: bool) -> None:
    """The manager hears when the port answers, and when the end begins; not sooner, and nothing else."""
    home.write_store(provider_store(own_sim.login()))
    with (
        manager(home, abstract=abstract) as (address, ear),
        proxy_running(home, own_sim, NOTIFY_SOCKET=address, PROXY_WORKERS=workers) as proxy,
    ):
        assert ear.recv(4096).decode() == f"READY=1\nSTATUS=Serving {proxy.url}"
        assert proxy.http.get("/health").status_code == 200
        assert proxy.stop() == 0
        assert ear.recv(4096) == b"STOPPING=1"
        ear.setblocking(False)
        with pytest.raises(BlockingIOError):
            ear.recv(4096)


@pytest.mark.parametrize("workers", [1, 2])
def test_watchdog(home: Home, own_sim: Sim, workers: int) -> None:
    """The manager hears signs of life twice in the time after which it would take the proxy for dead."""
    home.write_store(provider_store(own_sim.login()))
    with (
        manager(home) as (address, ear),
        proxy_running(home, own_sim, NOTIFY_SOCKET=address, WATCHDOG_USEC=400_000, PROXY_WORKERS=workers),
    ):
        heard = [ear.recv(4096) for _ in range(8)]
        assert heard.count(b"WATCHDOG=1") >= 7


def test_nobody_listens(home: Home, own_sim: Sim) -> None:
    """A manager that does not listen keeps nothing from working."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, NOTIFY_SOCKET=home.path / "none", WATCHDOG_USEC=100_000) as proxy:
        assert proxy.http.get("/health").status_code == 200
        assert proxy.stop() == 0


def handing_over(*sockets: socket.socket, to: str = "self") -> tuple[str, ...]:
    """A command that hands the sockets to the one behind it; `to`: the process they are meant for."""
    for sock in sockets:
        sock.set_inheritable(True)
    return (sys.executable, "-c", OPEN_FOR, ",".join(str(sock.fileno()) for sock in sockets), to)


@pytest.mark.parametrize("workers", [1, 2])
def test_socket_activation(home: Home, own_sim: Sim, workers: int) -> None:
    """A socket that the manager has opened is served, and survives a restart without a refused connection."""
    home.write_store(provider_store(own_sim.login()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        by = handing_over(listener)
        with proxy_running(home, own_sim, by=by, PROXY_PORT=1, PROXY_WORKERS=workers) as proxy:
            assert proxy.url == f"http://{host}:{port}"
            assert proxy.http.get("/health").status_code == 200
            assert proxy.stop() == 0
        with socket.create_connection((host, port), PATIENCE) as waiting:
            waiting.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            with proxy_running(home, own_sim, by=by, PROXY_PORT=1, PROXY_WORKERS=workers):
                assert waiting.recv(12) == b"HTTP/1.1 200"


def test_restarts_under_load(home: Home, own_sim: Sim) -> None:
    """While the service is restarted again and again, no request on a new connection fails."""
    home.write_store(provider_store(own_sim.login()))
    statuses: list[bytes] = []
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:

        def ask_on() -> None:
            while not over.is_set():
                with socket.create_connection(listener.getsockname(), PATIENCE) as sock:
                    sock.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                    statuses.append(sock.recv(12))

        threads = [threading.Thread(target=ask_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                with proxy_running(home, own_sim, by=handing_over(listener)) as proxy:
                    answered = len(statuses)
                    while len(statuses) < answered + 50:
                        assert proxy.process.poll() is None
                    assert proxy.stop() == 0
        finally:
            with proxy_running(home, own_sim, by=handing_over(listener)):
                over.set()
                for thread in threads:
                    thread.join(PATIENCE)
    assert len(statuses) > 150
    assert set(statuses) == {b"HTTP/1.1 200"}


def test_sockets_of_another_process(home: Home, own_sim: Sim) -> None:
    """Sockets that were meant for another process are left alone."""
    home.write_store(provider_store(own_sim.login()))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        proxy_running(home, own_sim, by=handing_over(listener, to="1")) as proxy,
    ):
        assert not proxy.url.endswith(f":{listener.getsockname()[1]}")


def test_open_socket_wants_a_key(home: Home) -> None:
    """A socket that other machines reach is not served without a key, whoever opened it."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        ended = run(environment(home), by=handing_over(listener))
    assert ended.returncode == 3
    assert "PROXY_API_KEY" in ended.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_open_socket_asks_for_the_key(home: Home, own_sim: Sim, workers: int) -> None:
    """On a socket that other machines reach health wants the key too, in every process that serves it."""
    home.write_store(provider_store(own_sim.login()))
    with (
        socket.create_server(("0.0.0.0", 0)) as listener,
        proxy_running(
            home,
            own_sim,
            by=handing_over(listener),
            PROXY_WORKERS=workers,
            PROXY_API_KEY="k" * 16,
        ) as proxy,
    ):
        assert proxy.http.get("/health").status_code == 401


def test_unix_socket_handed_over(home: Home, own_sim: Sim, tmp_path: Path) -> None:
    """A Unix socket may be handed over as well, beside a port."""
    home.write_store(provider_store(own_sim.login()))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(str(tmp_path / "sock"))
        unix.listen()
        with (
            proxy_running(home, own_sim, by=handing_over(listener, unix)),
            socket.socket(socket.AF_UNIX) as sock,
        ):
            sock.settimeout(PATIENCE)
            sock.connect(str(tmp_path / "sock"))
            sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("kind", ["pipe", "datagram", "connection"])
def test_handed_over_by_mistake(home: Home, kind: str) -> None:
    """What nobody can connect to ends the start with one line."""
    ends = socket.socketpair()
    with (
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        ends[0],
        ends[1],
        os.fdopen(os.pipe()[0]) as pipe,
    ):
        descriptors = {"pipe": pipe.fileno(), "datagram": datagrams.fileno(), "connection": ends[0].fileno()}
        descriptor = descriptors[kind]
        os.set_inheritable(descriptor, True)
        by = (sys.executable, "-c", OPEN_FOR, str(descriptor), "self")
        ended = run(environment(home), by=by)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "grok-oauth-proxy: Descriptor 3, handed over by LISTEN_FDS, is no listening"
    )


def test_next_to_the_port_of_the_settings(home: Home, own_sim: Sim) -> None:
    """A socket handed over is not told as one that was taken because the port of the settings is in use."""
    home.write_store(provider_store(own_sim.login()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] - 1
        with proxy_running(home, own_sim, by=handing_over(listener), PROXY_PORT=port) as proxy:
            assert proxy.stop() == 0
    assert "in use" not in proxy.err.text()


def test_abstract_socket_handed_over(home: Home, own_sim: Sim) -> None:
    """A socket in the abstract namespace is told with an @, as systemd writes it."""
    home.write_store(provider_store(own_sim.login()))
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0{home.path}")
        unix.listen()
        with ending(start(environment(home, own_sim), by=handing_over(unix))) as process:
            Output(process.stderr).wait_for(f"ready on the Unix socket @{home.path}$")


def test_no_descriptor_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life are given where no file can be opened any more."""
    with manager(Home(tmp_path)) as (address, ear):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with closing(Manager()) as watched:
            with Path(os.devnull).open() as last:
                lowest_free = last.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
            try:
                watched.tell("WATCHDOG=1")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        ear.setblocking(False)
        assert ear.recv(4096) == b"WATCHDOG=1"
