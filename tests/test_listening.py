"""A Unix socket beside the port, or instead of it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from grok_oauth_proxy.cli.running import Running, find_running, socket_path
from grok_oauth_proxy.errors import StartRefused
from grok_oauth_proxy.listening import check_place
from grok_oauth_proxy.settings import Settings
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


@pytest.fixture
def path(home: Home) -> Path:
    folder = home.path / "run"
    folder.mkdir(mode=0o700)
    return folder / "grok.sock"


@contextmanager
def serving(home: Home, sim: Sim, path: Path, **settings: object) -> Iterator[httpx.Client]:
    """A proxy on the socket alone, and a client of it."""
    home.write_store(provider_store(sim.login()))
    env = environment(home, sim, PROXY_UDS=path, PROXY_TCP="false", **settings)
    with ending(start(env)) as process:
        Output(process.stderr).wait_for("ready on the Unix socket")
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE) as http:
            yield http


@pytest.mark.parametrize("workers", [1, 2])
def test_socket_alone(home: Home, own_sim: Sim, path: Path, workers: int) -> None:
    """The API is served on the socket, which only this user can open, and which goes with the proxy."""
    with serving(home, own_sim, path, PROXY_WORKERS=workers) as http:
        assert http.get("/v1/models").status_code == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*path.parent.iterdir()] == []


def test_openai_over_the_socket(home: Home, own_sim: Sim, path: Path) -> None:
    """The OpenAI SDK works over it, given a transport."""
    with serving(home, own_sim, path) as http:
        openai = OpenAI(base_url="http://localhost/v1", api_key="none", http_client=http)
        assert "grok-4" in [model.id for model in openai.models.list()]


def test_socket_beside_the_port(home: Home, own_sim: Sim, path: Path) -> None:
    """Both are served."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_UDS=path) as proxy:
        assert proxy.http.get("/health").status_code == 200
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))


def test_socket_left_over(home: Home, own_sim: Sim, path: Path) -> None:
    """The socket of a proxy that was killed is replaced."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving(home, own_sim, path) as http:
        assert http.get("/health").status_code == 200


def test_relative_path(home: Home, own_sim: Sim, path: Path) -> None:
    """A path below the folder it was started in, and in any letters, is noted so that commands find it."""
    home.write_store(provider_store(own_sim.login()))
    folder = path.parent / "für mich"
    folder.mkdir(mode=0o700)
    by = (sys.executable, "-c", "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])")
    env = environment(home, own_sim, PROXY_UDS="grok.sock", PROXY_TCP="false")
    with ending(start(env, by=(*by, str(folder)))) as process:
        Output(process.stderr).wait_for(f"ready on the Unix socket {folder / path.name}$")
        running = find_running(Settings(grok_proxy_auth_state=home.state))
        assert isinstance(running, Running)
        assert socket_path(running.address) == str(folder / path.name)


def test_commands_over_the_socket(home: Home, own_sim: Sim, path: Path) -> None:
    """`status` and `doctor` find a proxy on a socket; `config` prints what leads there, `env` why not."""
    with serving(home, own_sim, path):
        env = environment(home, own_sim, PROXY_UDS=path, PROXY_TCP="false")
        status = run(env, "status")
        assert status.returncode == 0
        assert f"isrunning:theUnixsocket{path}" in "".join(status.stdout.split())  # it is folded
        assert "It runs and is ok." in run(env, "doctor").stdout
        curl = run(env, "config", "curl").stdout
        answered = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, timeout=PATIENCE)
        assert json.loads(answered.stdout)["choices"]
        program = run(env, "config", "openai").stdout
        answered = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert answered.stdout.strip(), answered.stderr
        refused = run(env, "env")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "PROXY_TCP=true" in refused.stderr


def refusal(home: Home, sim: Sim, path: Path) -> str:
    home.write_store(provider_store(sim.login()))
    ended = run(environment(home, sim, PROXY_UDS=path))
    assert ended.returncode == 3
    assert len(ended.stderr.splitlines()) == 1
    return ended.stderr


def test_socket_in_use(home: Home, own_sim: Sim, path: Path) -> None:
    """One that somebody listens on is not taken from him."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        assert "another program listens there" in refusal(home, own_sim, path)
        assert path.is_socket()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_folder_of_others(home: Home, own_sim: Sim, path: Path, mode: int) -> None:
    """Where others can write they could replace it, so that it is not made there."""
    path.parent.chmod(mode)
    assert "others can write" in refusal(home, own_sim, path)
    assert not path.exists()


def test_folder_above_of_others(home: Home, own_sim: Sim, path: Path) -> None:
    """Others could replace a folder on the way to it, too, unless its sticky bit keeps them from it."""
    inner = path.parent / "inner"
    inner.mkdir(mode=0o700)
    path.parent.chmod(0o707)
    assert f"others can write to {path.parent}," in refusal(home, own_sim, inner / "sock")
    path.parent.chmod(0o1777)
    with serving(home, own_sim, inner / "sock") as http:
        assert http.get("/health").status_code == 200


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
@pytest.mark.parametrize(("owner", "accepted"), [(65534, True), (12345, False)])
def test_folder_above_of_another_user(path: Path, owner: int, accepted: bool) -> None:
    """Nobody's folder is root's, seen from the user namespace of the unit; any other user's is refused."""
    inner = path.parent / "inner"
    inner.mkdir(mode=0o700)
    os.chown(path.parent, owner, -1)
    with nullcontext() if accepted else pytest.raises(StartRefused, match="others can write"):
        check_place(inner / "sock")


def test_something_else_there(home: Home, own_sim: Sim, path: Path) -> None:
    """A file in its place is not removed."""
    path.write_text("precious")
    assert "something else" in refusal(home, own_sim, path)
    assert path.read_text() == "precious"


def test_no_folder(home: Home, own_sim: Sim, path: Path) -> None:
    """A folder that is not there is asked for."""
    path.parent.rmdir()
    assert "Make the folder" in refusal(home, own_sim, path)


def test_path_with_control_characters(home: Home, own_sim: Sim, path: Path) -> None:
    """A path that would break the line of other commands and logs is refused."""
    assert "control characters" in refusal(home, own_sim, path.with_name("a\nb"))


def test_relative_to_nowhere(home: Home, own_sim: Sim, path: Path) -> None:
    """A relative path is refused in a line where the folder it would begin at is gone."""
    home.write_store(provider_store(own_sim.login()))
    code = "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    env = environment(home, own_sim, PROXY_UDS="grok.sock", PROXY_TCP="false")
    ended = run(env, by=(sys.executable, "-c", code, str(path.parent)))
    assert ended.returncode == 3
    assert "Use an absolute path" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_path_too_long(home: Home, own_sim: Sim, path: Path) -> None:
    """A path longer than the system takes is told as such."""
    assert "too long" in refusal(home, own_sim, path.with_name("x" * 120))


def test_nothing_to_listen_on(home: Home, own_sim: Sim) -> None:
    """Without a port and without a socket there is nothing to serve: exit code 2."""
    home.write_store(provider_store(own_sim.login()))
    ended = run(environment(home, own_sim, PROXY_TCP="false"))
    assert ended.returncode == 2
    assert "PROXY_UDS" in ended.stderr
