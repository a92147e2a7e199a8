"""`push` over a real sshd: every step, every way to fail, and what is where afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.own import own_login
from tests.harness import PATIENCE, Output, ending, environment, proxy_running, start
from tests.moving.side import Ended, Side, command, is_silent_about, link
from tests.moving.ssh import Server, serving
from tests.moving.test_export import leads_to
from tests.moving.test_scripts import python39
from tests.sim.harness import Sim

TWO_OWNERS = "the login now has two owners"


@pytest.fixture
def server(tmp_path: Path, there: Side, shared_sim: Sim) -> Iterator[Server]:
    with serving(there, tmp_path / "ssh", sessions(shared_sim)) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path, own_sim: Sim) -> Iterator[Server]:
    """Before a simulator that the test may disturb."""
    with serving(Side.at(tmp_path / "there", own_sim), tmp_path / "ssh", sessions(own_sim)) as server:
        yield server


def sessions(sim: Sim) -> dict[str, str]:
    return {"GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM": "true", "XAI_OAUTH_ISSUER": sim.url}


def pushing(side: Side, server: Server, *options: str, host: str = "server") -> list[str]:
    """The command, and the side's PATH set so that it finds the ssh that knows the way."""
    side.settings["PATH"] = f"{server.client}:{os.environ['PATH']}"
    return command("push", "--host", host, "--identity", str(server.key), *options)


def push(side: Side, server: Server, *options: str, host: str = "server") -> Ended:
    return side.run_by(pushing(side, server, *options, host=host))


def marks(ended: Ended) -> list[str]:
    """What was shown of each step: its mark and its name."""
    return [line.split(":")[0] for line in ended.stdout.splitlines() if line[0] in "✓✗"]


DONE = ["✓ Login here", "✓ Connection to server", "✓ Import there", "✓ Restart", "✓ Health"]


def test_to_a_running_proxy(here: Side, own_server: Server, own_sim: Sim) -> None:
    """The proxy there uses the login, what it had before is kept, and nothing shows a token."""
    there = own_server.side
    tokens, before = here.sign_in(own_sim), there.sign_in(own_sim)
    with proxy_running(there.home, own_sim) as proxy:
        ended = push(here, own_server)
        assert (ended.returncode, marks(ended)) == (0, DONE), ended.stdout + ended.stderr
        assert there.read_books()["tokens"]["refresh_token"] == tokens["refresh_token"]
        assert proxy.http.get("/v1/models").status_code == 200
    assert "picks the login up by itself" in ended.stdout
    assert "and the API takes it" in ended.stdout
    assert TWO_OWNERS in ended.stderr
    assert there.home.refresh_tokens() == here.home.refresh_tokens() == {tokens["refresh_token"]}
    (kept,) = there.home.auth.parent.glob("auth.replaced-*.json")
    assert before["refresh_token"] in kept.read_text()
    assert str(kept) in ended.stdout
    assert is_silent_about(ended, tokens)
    for name in ("access_token", "refresh_token", "id_token"):
        assert tokens[name] not in own_server.arguments()
    assert [path for path in there.home.path.iterdir() if path.name not in (".hermes", ".local")] == []


def test_the_proxys_key(here: Side, own_server: Server, own_sim: Sim) -> None:
    """A proxy that wants its key is asked with the one of the environment there, if it has one."""
    there, key = own_server.side, "canary-of-the-proxy-key"
    here.sign_in(own_sim)
    there.sign_in(own_sim)
    with proxy_running(there.home, own_sim, PROXY_API_KEY=key, PROXY_HOST="0.0.0.0") as proxy:
        address = proxy.home.state.with_name("address")
        address.write_text(address.read_text().replace("0.0.0.0", "127.0.0.1"))
        ended = push(here, own_server)
        assert (ended.returncode, marks(ended)[-1]) == (1, "✗ Health"), ended.stdout
        assert "Set PROXY_API_KEY" in ended.stdout
        (there.home.path / ".bashrc").write_text(f"export PROXY_API_KEY={key}\n")
        ended = push(here, own_server)
        assert (ended.returncode, marks(ended)) == (0, DONE), ended.stdout
        assert key not in ended.stdout + ended.stderr


def test_to_a_proxy_on_a_socket(here: Side, own_server: Server, own_sim: Sim) -> None:
    """A proxy there that listens on a Unix socket alone is asked over it."""
    here.sign_in(own_sim)
    there = own_server.side
    there.sign_in(own_sim)
    path = there.home.path / "run" / "sock"
    path.parent.mkdir(mode=0o700)
    with ending(start(environment(there.home, own_sim, PROXY_UDS=path, PROXY_TCP="false"))) as process:
        Output(process.stderr).wait_for("ready on the Unix socket")
        ended = push(here, own_server)
    assert (ended.returncode, marks(ended)) == (0, DONE), ended.stdout + ended.stderr


def test_move(here: Side, own_server: Server, own_sim: Sim) -> None:
    """With --move the login is gone here once the proxy there uses it."""
    tokens = here.sign_in(own_sim)
    there = own_server.side
    there.sign_in(own_sim)
    with proxy_running(there.home, own_sim):
        ended = push(here, own_server, "--move")
    assert (ended.returncode, marks(ended)) == (0, [*DONE, "✓ Removal here"]), ended.stderr
    assert there.home.refresh_tokens() == {tokens["refresh_token"]}
    assert here.home.refresh_tokens() == set()
    assert TWO_OWNERS not in ended.stderr


def test_as_its_own(here: Side, own_server: Server, own_sim: Sim) -> None:
    """With --own the running proxy there goes over to the login as its own, and Hermes' store there stays."""
    tokens = here.sign_in(own_sim)
    there = own_server.side
    there.sign_in(own_sim)
    before = there.home.auth.read_bytes()
    with proxy_running(there.home, own_sim) as proxy:
        ended = push(here, own_server, "--own", "--move")
        assert (ended.returncode, marks(ended)) == (0, [*DONE, "✓ Removal here"]), ended.stdout + ended.stderr
        assert proxy.health()["credential_source"] == "own"
        assert proxy.http.get("/v1/models").status_code == 200
    assert tokens["refresh_token"] in there.home.state.with_name("login.json").read_text()
    assert there.home.auth.read_bytes() == before
    assert here.home.refresh_tokens() == set()


def test_own_login_moved_on(here: Side, own_server: Server, own_sim: Sim) -> None:
    """A proxy here whose own login was moved gives it up, and never refreshes it again."""
    tokens = own_sim.login(access_lifetime=240, age=120)
    own_login(here.home, tokens)
    with proxy_running(here.home, own_sim) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        ended = push(here, own_server, "--move")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        proxy.err.wait_for("holds no login of the proxy's own")
        assert proxy.http.get("/v1/models").status_code == 503
    assert own_sim.counters()["token_requests"] == 0


def test_nothing_runs_there(here: Side, server: Server, shared_sim: Sim) -> None:
    """On a server without anything but python3 the login waits for the first start."""
    tokens = here.sign_in(shared_sim)
    server.side.home.auth.parent.rmdir()
    ended = push(here, server, "--own")
    assert (ended.returncode, marks(ended)) == (0, DONE), ended.stderr
    assert "No proxy runs there" in ended.stdout
    assert tokens["refresh_token"] in server.side.own.read_text()
    assert not server.side.home.auth.parent.exists()


def test_the_oldest_python_there(here: Side, server: Server, shared_sim: Sim) -> None:
    """A server whose python3 is 3.9 takes it."""
    if (old := python39()) is None:
        pytest.skip("there is no python3.9 on PATH")
    tokens = here.sign_in(shared_sim)
    (server.bin / "python3").unlink()
    (server.bin / "python3").symlink_to(old)
    ended = push(here, server)
    assert ended.returncode == 0, ended.stdout
    assert "Python 3.9" in ended.stdout
    assert server.side.home.refresh_tokens() == {tokens["refresh_token"]}


def test_a_noisy_login(here: Side, server: Server, shared_sim: Sim) -> None:
    """What the server's shell prints besides, terminal codes included, is not shown or listened to."""
    here.sign_in(shared_sim)
    (server.side.home.path / ".bashrc").write_text("printf 'Welcome \\033[2J {\"ok\": false}'\n")
    ended = push(here, server)
    assert (ended.returncode, marks(ended)) == (0, DONE)
    assert "Welcome" not in ended.stdout + ended.stderr


def test_the_service_is_restarted(here: Side, server: Server, shared_sim: Sim) -> None:
    """An active user unit is restarted; when it does not come up again, the push says so."""
    here.sign_in(shared_sim)
    asked = server.bin / "asked"
    script = server.bin / "systemctl"
    script.write_text(f"#!/bin/sh\necho \"$XDG_RUNTIME_DIR $@\" >> '{asked}'\n")
    script.chmod(0o755)
    server.side.sign_in(shared_sim)
    with proxy_running(server.side.home, shared_sim):
        ended = push(here, server)
        assert (ended.returncode, marks(ended)) == (0, DONE), ended.stderr
        assert "The service was restarted" in ended.stdout
        runtime = f"/run/user/{os.getuid()} --user"
        assert asked.read_text().splitlines() == [
            f"{runtime} is-active --quiet grok-oauth-proxy",
            f"{runtime} restart grok-oauth-proxy",
        ]
    script.write_text('#!/bin/sh\n[ "$2" = is-active ]\n')
    ended = push(here, server)
    assert (ended.returncode, marks(ended)) == (1, [*DONE[:3], "✗ Restart"])
    assert "journalctl" in ended.stdout


def test_the_api_refuses_it(here: Side, own_server: Server, own_sim: Sim) -> None:
    """A login that the API no longer takes ends the push at its health, and is not removed here."""
    tokens = here.sign_in(own_sim)
    there = own_server.side
    there.sign_in(own_sim)
    with proxy_running(there.home, own_sim):
        own_sim.http.post("/_sim/revoke").raise_for_status()
        ended = push(here, own_server, "--move")
    assert (ended.returncode, marks(ended)) == (1, [*DONE[:4], "✗ Health"]), ended.stdout
    assert here.home.refresh_tokens() == {tokens["refresh_token"]}
    assert "so it has two owners" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_server_wants_no_login_of_ours(here: Side, server: Server, shared_sim: Sim) -> None:
    """An import that is refused there stops the push with both sides unchanged, and says why."""
    tokens = here.sign_in(shared_sim)
    there = server.side
    there.write_books(dead={link(tokens["refresh_token"]): "invalid_grant"})
    before = there.files(), here.files()
    ended = push(here, server, "--move")
    assert (ended.returncode, marks(ended)) == (1, [*DONE[:2], "✗ Import there"])
    assert "has refused this very login" in ended.stdout
    assert "Here: nothing was changed. There: nothing was changed." in ended.stderr
    assert (there.files(), here.files()) == before


def test_it_cannot_be_reached(here: Side, server: Server, shared_sim: Sim) -> None:
    """An unknown host, a host whose key is not known and a server without python3 stop it before anything."""
    here.sign_in(shared_sim)
    before = server.side.files(), here.files()
    unreachable = [push(here, server, host=host) for host in ("no-such-host.invalid", "127.0.0.1")]
    (server.bin / "python3").unlink()
    (server.bin / "python3").symlink_to("/bin/false")
    unreachable.append(push(here, server))
    for ended in unreachable:
        assert ended.returncode == 1
        assert marks(ended)[0] == "✓ Login here"
        assert marks(ended)[1].startswith("✗ Connection to")
        assert "Here: nothing was changed. There: nothing was changed." in ended.stderr
    assert (server.side.files(), here.files()) == before


def test_without_ssh(here: Side, shared_sim: Sim) -> None:
    """A machine without ssh says what to install."""
    here.sign_in(shared_sim)
    here.settings["PATH"] = str(here.home.path)
    ended = here.run("push", "--host", "server")
    assert ended.returncode == 1
    assert "apt install openssh-client" in ended.stdout


def test_from_a_profile(here: Side, server: Server, shared_sim: Sim) -> None:
    """The root store's login, which a profile uses, is pushed and moved out of the root store."""
    tokens = here.sign_in(shared_sim)
    here.settings["HERMES_HOME"] = str(here.home.auth.parent / "profiles" / "work")
    ended = push(here, server, "--move")
    assert ended.returncode == 0, ended.stdout
    assert here.home.refresh_tokens() == set()
    assert server.side.home.refresh_tokens() == {tokens["refresh_token"]}


def test_nothing_to_push(here: Side, server: Server) -> None:
    """Without a login here nobody is connected to."""
    ended = push(here, server)
    assert (ended.returncode, marks(ended)) == (1, ["✗ Login here"])
    assert not (server.client / "arguments").exists()


def test_to_itself(here: Side, tmp_path: Path, shared_sim: Sim) -> None:
    """A server that is this machine, with this home, is told from another one: the login stays."""
    tokens = here.sign_in(shared_sim)
    with serving(here, tmp_path / "ssh", sessions(shared_sim)) as server:
        ended = push(here, server, "--move")
    assert (ended.returncode, marks(ended)[-1]) == (1, "✗ Connection to server")
    assert "this very login" in ended.stdout
    assert here.home.refresh_tokens() == {tokens["refresh_token"]}


def waits_for(lock: Path) -> bool:
    """Whether another process has this lock file open."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # the process has ended, or is another user's
            if folder.parent.name != str(os.getpid()) and any(
                leads_to(each, lock) for each in folder.iterdir()
            ):
                return True
    return False


@pytest.mark.parametrize("victim", ["ssh", "push"])
def test_cut_during_the_import(here: Side, server: Server, shared_sim: Sim, victim: str) -> None:
    """Cut off, or interrupted, while the server imports: it says that nobody knows, and removes nothing."""
    tokens = here.sign_in(shared_sim)
    server.side.sign_in(shared_sim)
    with (
        server.side.locked(),
        ending(
            subprocess.Popen(
                pushing(here, server, "--move"),
                env=here.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        ) as process,
    ):
        out, err = Output(process.stdout), Output(process.stderr)
        out.wait_for("✓ Connection")
        while not waits_for(server.side.home.auth.with_name("auth.lock")):
            pass
        if victim == "ssh":
            os.kill(int((server.client / "pid").read_text()), signal.SIGTERM)
        else:
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == (1 if victim == "ssh" else 130)
        assert "✗ Import there" in out.text()
        assert "There: the login may have arrived or not" in err.text()
    assert here.home.refresh_tokens() == {tokens["refresh_token"]}
    assert not here.is_locked()
