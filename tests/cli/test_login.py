"""`login` and `logout`: a login of the proxy's own, from the first question to its end."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.harness import (
    PATIENCE,
    UNPRIVILEGED,
    Home,
    Json,
    Output,
    ending,
    environment,
    provider_store,
    proxy_running,
    run,
    start,
)
from tests.sim.harness import CLIENT, Sim, client

OPENER = "curl -s -L -o /dev/null %s"


@pytest.fixture
def sim(own_sim: Sim) -> Sim:
    own_sim.patch(device_interval=1)
    return own_sim


def own_file(home: Home) -> Path:
    return home.state.with_name("login.json")


def own_login(home: Home) -> Json:
    content: Json = json.loads(own_file(home).read_text())
    return content


def settings_of(home: Home, sim: Sim, **more: object) -> dict[str, str]:
    return environment(home, sim, XAI_OAUTH_CLIENT_ID=CLIENT, **more)


@contextmanager
def signing_in(env: dict[str, str], *options: str) -> Iterator[tuple[subprocess.Popen[str], Output, Output]]:
    with ending(start(env, "login", *options)) as process:
        yield process, Output(process.stdout), Output(process.stderr)


def shown_code(out: Output) -> str:
    return out.wait_for(r"^  ([A-Z]{4}-[A-Z]{4})$")[1]


# With a code.


def test_code(home: Home, sim: Sim) -> None:
    """A code confirmed on any device makes a login in a private file; Hermes is not needed, nor touched."""
    sim.patch(device_approval="manual")
    with signing_in(settings_of(home, sim)) as (process, out, err):
        code = shown_code(out)
        page = out.wait_for(r"^  (http\S+/oauth2/device\S+)$")[1]
        assert httpx.get(page, trust_env=False).status_code == 200
        assert code in page
        assert process.wait(PATIENCE) == 0
    assert "✓ Signed in." in out.text()
    assert err.text() == ""
    assert own_file(home).stat().st_mode & 0o777 == 0o600
    assert own_file(home).parent.stat().st_mode & 0o777 == 0o700
    assert own_login(home)["client_id"] == CLIENT
    assert list(home.auth.parent.iterdir()) == []
    with proxy_running(home, sim, HERMES_CLI_REQUIRED="true") as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        assert proxy.health()["credential_source"] == "own"


def test_nothing_secret_is_printed(home: Home, sim: Sim) -> None:
    """Neither the tokens nor the device code reach the terminal."""
    ended = run(settings_of(home, sim), "login")
    assert ended.returncode == 0
    printed = ended.stdout + ended.stderr
    tokens = own_login(home)["tokens"]
    assert not [name for name in ("access_token", "refresh_token", "id_token") if tokens[name] in printed]


def test_refused_on_the_page(home: Home, sim: Sim) -> None:
    """Who refuses on the page ends the wait with one line and exit code 1; nothing is kept."""
    sim.patch(device_approval="manual")
    with signing_in(settings_of(home, sim)) as (process, out, err):
        sim.http.post("/_sim/device/deny", json={"user_code": shown_code(out)}).raise_for_status()
        assert process.wait(PATIENCE) == 1
    assert err.text().startswith("grok-oauth-proxy: The sign-in was refused on the page.")
    assert not own_file(home).exists()


def test_code_that_expires(home: Home, sim: Sim) -> None:
    """A code that nobody confirms in time ends with the advice to start again."""
    sim.patch(device_approval="manual", device_expires_in=2)
    ended = run(settings_of(home, sim), "login")
    assert ended.returncode == 1
    assert "expired before it was confirmed" in ended.stderr


@pytest.mark.parametrize("fault", ["500", "502-html", "drop-before"])
def test_trouble_while_waiting(home: Home, sim: Sim, fault: str) -> None:
    """A server or a network that fails while the code is waited for is asked again."""
    sim.http.post("/_sim/token-faults", json={"kind": fault, "times": 1}).raise_for_status()
    assert run(settings_of(home, sim), "login").returncode == 0
    assert sim.counters()["token_requests"] == 2


def test_countdown(home: Home, sim: Sim) -> None:
    """On a terminal the time that is left is shown, and counts down."""
    sim.patch(device_approval="manual", device_expires_in=90)
    terminal, its_end = pty.openpty()
    command = [sys.executable, "-m", "grok_oauth_proxy", "login"]
    env = settings_of(home, sim, TERM="xterm")
    with ending(subprocess.Popen(command, env=env, stdout=its_end, stderr=its_end, text=True)) as process:
        os.close(its_end)
        shown = ""
        while len(set(re.findall(r"1:2\d left; Ctrl-C gives up", shown))) < 2:
            assert select.select([terminal], [], [], PATIENCE)[0], shown
            shown += os.read(terminal, 4096).decode()
        process.send_signal(signal.SIGINT)
        # What it says last must be read, or it could not end.
        while select.select([terminal], [], [], PATIENCE)[0]:
            try:
                os.read(terminal, 4096)
            except OSError:
                break
        assert process.wait(PATIENCE) == 130
    os.close(terminal)


def test_given_up(home: Home, sim: Sim) -> None:
    """Ctrl-C while the code is waited for ends with 130 and leaves no login behind."""
    sim.patch(device_approval="manual")
    with signing_in(settings_of(home, sim)) as (process, out, err):
        shown_code(out)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert err.text().strip() == "Given up; nothing was changed."
    assert not own_file(home).exists()


def test_given_up_too_late(home: Home, sim: Sim) -> None:
    """A login that the server gives when Ctrl-C was pressed already is ended there."""
    sim.patch(token_delay=1)
    with signing_in(settings_of(home, sim)) as (process, out, _err):
        shown_code(out)
        reached = sim.http.get("/_sim/wait?counter=token_requests&n=1&timeout=20", timeout=PATIENCE).json()
        assert reached["reached"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert not own_file(home).exists()
    assert (sim.counters()["logins"], sim.counters()["revocations"]) == (1, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_given_up_after_it_was_saved(home: Home, sim: Sim, number: signal.Signals) -> None:
    """Who gives up when the login is saved already is told that it is there, with exit code 0."""
    sim.patch(device_approval="manual")
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "grok_oauth_proxy", "login"]
    with (
        _not_ignored(number),
        subprocess.Popen(command, env=settings_of(home, sim), stdout=writer) as process,
    ):
        shown = b""
        while not (code := re.search(rb"^  ([A-Z]{4}-[A-Z]{4})\n\n", shown, re.M)):
            shown += os.read(reader, 4096)
        _fill(writer)  # so that it cannot end before the signal comes
        sim.http.post("/_sim/device/approve", json={"user_code": code[1].decode()}).raise_for_status()
        deadline = time.monotonic() + PATIENCE
        while not own_file(home).exists():
            assert time.monotonic() < deadline
        while _sockets(process.pid) > _OF_ITS_LOOP:  # the connection to the server is closed behind the lock
            assert time.monotonic() < deadline
        process.send_signal(number)
        with os.fdopen(reader, encoding="utf-8") as rest:
            assert "✓ Signed in." in rest.read()
        assert process.wait(PATIENCE) == 0
    assert sim.status_of(own_login(home)["tokens"]["access_token"]) == 200


_OF_ITS_LOOP = 2
"""Sockets by which an event loop wakes itself."""


def _sockets(pid: int) -> int:
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def _fill(writer: int) -> None:
    """Write to the pipe until it takes no more, and close it."""
    os.set_blocking(writer, False)
    try:
        while os.write(writer, b"." * 1024 * 1024):
            pass
    except BlockingIOError:
        os.set_blocking(writer, True)
        os.close(writer)


# Which client it is made for.


def test_no_client_id(home: Home, sim: Sim) -> None:
    """Where nothing names an OAuth client, one line says how to name one, with exit code 2."""
    ended = run(environment(home, sim), "login")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Set XAI_OAUTH_CLIENT_ID" in ended.stderr


def test_client_id_of_hermes(home: Home, sim: Sim) -> None:
    """The client that Hermes' login belongs to is used, and its store stays as it is, byte for byte."""
    home.write_store(provider_store(sim.login()))
    before = home.auth.read_bytes()
    assert run(environment(home, sim), "login").returncode == 0
    assert own_login(home)["client_id"] == CLIENT
    assert home.auth.read_bytes() == before


def test_client_id_of_the_login_before(home: Home, sim: Sim) -> None:
    """After a logout the next login is made for the same client."""
    assert run(settings_of(home, sim), "login").returncode == 0
    assert run(environment(home, sim), "logout", "--yes").returncode == 0
    assert run(environment(home, sim), "login").returncode == 0
    assert own_login(home)["client_id"] == CLIENT


def test_no_place_to_keep_it(home: Home, sim: Sim) -> None:
    """A state folder that cannot be written is told before anybody signs in for nothing."""
    home.state.parent.parent.mkdir(parents=True)
    home.state.parent.write_text("in the way")
    ended = run(settings_of(home, sim), "login")
    assert ended.returncode == 3
    assert len(ended.stderr.splitlines()) == 1
    assert sim.counters()["logins"] == 0


def test_server_not_there(home: Home, sim: Sim) -> None:
    """Without a network the login ends at once, with one line."""
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    ended = run(settings_of(home, sim, XAI_OAUTH_ISSUER=f"http://127.0.0.1:{port}"), "login")
    assert ended.returncode == 1
    assert "no usable answer (unreachable)" in ended.stderr


# With a browser.


def test_browser(home: Home, sim: Sim) -> None:
    """The browser comes back with a code, which becomes the login."""
    ended = run(settings_of(home, sim, BROWSER=OPENER), "login", "--browser")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert own_login(home)["tokens"]["refresh_token"]
    question = parse_qs(urlsplit(re.search(r"^  (http\S+authorize\S+)$", ended.stdout, re.M)[1]).query)  # type: ignore[index]
    assert question["plan"] == ["generic"]
    assert question["code_challenge_method"] == ["S256"]


@contextmanager
def at_the_page(
    home: Home, sim: Sim, **more: object
) -> Iterator[tuple[httpx.Client, dict[str, str], Output]]:
    """A sign-in that waits for its browser: a client for its page, what it asked for, what it prints."""
    with signing_in(settings_of(home, sim, **more), "--browser") as (process, out, _err):
        page = out.wait_for(r"^  (http\S+authorize\S+)$")[1]
        asked = {name: values[0] for name, values in parse_qs(urlsplit(page).query).items()}
        with client(asked["redirect_uri"].removesuffix("/callback")) as browser:
            yield browser, {**asked, "page": page}, out
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def test_answer_of_another_sign_in(home: Home, sim: Sim) -> None:
    """An answer with another state is refused and told, and the right one still counts."""
    with at_the_page(home, sim) as (browser, asked, out):
        wrong = browser.get("/callback", params={"code": "x", "state": "not-the-one"})
        assert wrong.status_code == 400
        out.wait_for("belongs to another sign-in came, and was refused")
        assert not own_file(home).exists()
        right = httpx.get(asked["page"], follow_redirects=True, trust_env=False)
        assert "You are signed in" in right.text
        out.wait_for("✓ Signed in")


def test_answer_that_comes_twice(home: Home, sim: Sim) -> None:
    """A browser that comes back twice with the same code has it redeemed once."""
    with at_the_page(home, sim) as (browser, asked, out), ThreadPoolExecutor(2) as pool:
        sent = httpx.get(asked["page"], trust_env=False)
        query = urlsplit(sent.headers["location"]).query
        statuses = list(pool.map(lambda _: browser.get(f"/callback?{query}").status_code, range(2)))
        out.wait_for("✓ Signed in")
    assert sorted(statuses) == [200, 400]
    assert sim.counters()["token_requests"] == 1
    assert sim.counters()["revocations"] == 0
    assert sim.status_of(own_login(home)["tokens"]["access_token"]) == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_given_up_while_redeeming(home: Home, sim: Sim, number: signal.Signals) -> None:
    """Ended while the code is redeemed, it ends what comes of it at the server, and says nothing else."""
    sim.patch(token_delay=1)
    command = signing_in(settings_of(home, sim, BROWSER=OPENER), "--browser")
    with _not_ignored(number), command as (process, _out, err):
        reached = sim.http.get("/_sim/wait?counter=token_requests&n=1&timeout=20", timeout=PATIENCE).json()
        assert reached["reached"]
        process.send_signal(number)
        assert process.wait(PATIENCE) == 130
    assert err.text().strip() == "Given up; nothing was changed."
    assert not own_file(home).exists()
    assert (sim.counters()["logins"], sim.counters()["revocations"]) == (1, 1)


@contextmanager
def _not_ignored(number: signal.Signals) -> Iterator[None]:
    """A command that is started now hears the signal, though `nohup` may have started the tests."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_second_login(home: Home, sim: Sim) -> None:
    """A login that takes the place of another one says what becomes of that."""
    assert "was here before" not in run(settings_of(home, sim), "login").stdout
    assert (
        "The login that was here before is not used any more" in run(settings_of(home, sim), "login").stdout
    )


def test_refused_in_the_browser(home: Home, sim: Sim) -> None:
    """Who refuses in the browser ends the wait."""
    sim.patch(authorize_outcome="deny")
    ended = run(settings_of(home, sim, BROWSER=OPENER), "login", "--browser")
    assert ended.returncode == 1
    assert "The sign-in was refused on the page." in ended.stderr


def test_foreign_pages(home: Home, sim: Sim) -> None:
    """Scripts of the accounts page may read the answer; those of others and other hosts are turned away."""
    with at_the_page(home, sim) as (browser, asked, _out):
        query = {"code": "x", "state": asked["state"]}
        foreign = browser.get("/callback", params=query, headers={"origin": "https://evil.example"})
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers
        rebound = browser.get("/callback", params=query, headers={"host": "evil.example"})
        assert rebound.status_code == 400
        accounts = {"origin": "https://accounts.x.ai"}
        allowed = browser.get("/callback", params={"state": "x"}, headers=accounts)
        assert allowed.headers["access-control-allow-origin"] == "https://accounts.x.ai"
        preflight = browser.options(
            "/callback",
            headers={
                **accounts,
                "access-control-request-method": "GET",
                "access-control-request-private-network": "true",
            },
        )
        assert preflight.headers["access-control-allow-private-network"] == "true"
        assert browser.get("/elsewhere").status_code == 404
        assert not own_file(home).exists()


def test_busy_port_over_ssh(home: Home, sim: Sim) -> None:
    """Over ssh the line to forward names the port that is really bound, which is the next free one."""
    with (
        _occupied(56121),
        at_the_page(home, sim, SSH_CONNECTION="198.51.100.7 50000 192.0.2.1 2222") as (_browser, asked, out),
    ):
        port = urlsplit(asked["redirect_uri"]).port
        assert port is not None
        assert port > 56121
        out.wait_for(rf"^  ssh -N -L {port}:127\.0\.0\.1:{port} -p 2222 \S+@192\.0\.2\.1$")


@contextmanager
def _occupied(port: int) -> Iterator[None]:
    """The port is in use, by us or by whoever has it already."""
    try:
        sock = socket.create_server(("127.0.0.1", port))
    except OSError:
        yield
        return
    with sock:
        yield


# The end.


def test_logout(home: Home, sim: Sim) -> None:
    """A logout ends the login at the server and takes its tokens away; Hermes' store stays byte for byte."""
    home.write_store(provider_store(sim.login()))
    before = home.auth.read_bytes()
    assert run(environment(home, sim), "login").returncode == 0
    tokens = own_login(home)["tokens"]
    ended = run(environment(home, sim), "logout", "--yes")
    assert ended.returncode == 0
    assert "The login is ended at xAI." in ended.stdout
    assert sim.status_of(tokens["access_token"]) == 401
    assert tokens["refresh_token"] not in own_file(home).read_text()
    assert home.auth.read_bytes() == before
    assert sim.status_of(json.loads(before)["providers"]["xai-oauth"]["tokens"]["access_token"]) == 200


def test_logout_asks(home: Home, sim: Sim) -> None:
    """Without --yes, and with nobody to answer, nothing is ended, and the exit code is that of giving up."""
    assert run(settings_of(home, sim), "login").returncode == 0
    before = own_file(home).read_bytes()
    ended = run(environment(home, sim), "logout")
    assert (ended.returncode, ended.stderr) == (130, "Given up.\n")
    assert "This ends the proxy's own login at xAI" in ended.stdout
    assert own_file(home).read_bytes() == before


def test_logout_without_a_network(home: Home, sim: Sim) -> None:
    """When the server cannot be asked, nothing is removed, and the line says what can be done."""
    assert run(settings_of(home, sim), "login").returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    ended = run(environment(home, sim, XAI_OAUTH_ISSUER=f"http://127.0.0.1:{port}"), "logout", "--yes")
    assert ended.returncode == 1
    assert "nothing was removed" in ended.stderr
    assert own_login(home)["tokens"]


def test_logout_without_room(home: Home, sim: Sim) -> None:
    """Where the file cannot be written, a logout ends nothing, at xAI neither, and says so."""
    assert run(settings_of(home, sim), "login").returncode == 0
    before = own_file(home).read_bytes()
    no_room = ("/bin/sh", "-c", 'ulimit -f 0; exec "$@"', "sh")
    ended = run(environment(home, sim), "logout", "--yes", by=no_room)
    assert ended.returncode == 3
    assert "cannot be written: File too large. Nothing was ended." in ended.stderr
    assert own_file(home).read_bytes() == before
    assert sim.counters()["revocations"] == 0


def test_logout_that_cannot_be_kept(home: Home, sim: Sim) -> None:
    """Where the file cannot be written when the login is ended at xAI already, both are told."""
    assert run(settings_of(home, sim), "login").returncode == 0
    folder = own_file(home).parent
    os.kill(sim.pid, signal.SIGSTOP)
    try:
        with ending(start(environment(home, sim), "logout", "--yes", by=UNPRIVILEGED)) as process:
            err = Output(process.stderr)
            deadline = time.monotonic() + PATIENCE
            while _sockets(process.pid) <= _OF_ITS_LOOP:  # until it asks the server
                assert time.monotonic() < deadline
            folder.chmod(0o500)
            os.kill(sim.pid, signal.SIGCONT)
            assert process.wait(PATIENCE) == 3
    finally:
        os.kill(sim.pid, signal.SIGCONT)
        folder.chmod(0o700)
    assert "The login is ended at xAI, but" in err.text()
    assert "Remove it yourself." in err.text()
    assert sim.counters()["revocations"] == 1


def test_logout_of_a_damaged_file(home: Home, sim: Sim) -> None:
    """A damaged file is kept aside, and it is said that its login may live on; the next logout finds none."""
    assert run(settings_of(home, sim), "login").returncode == 0
    half = own_file(home).read_bytes()[:-200]
    own_file(home).write_bytes(half)
    ended = run(environment(home, sim), "logout", "--yes")
    assert ended.returncode == 1
    kept = own_file(home).with_name("login.json.corrupt-1")
    assert f"is damaged: it is not a JSON object. It is kept as {kept}" in ended.stderr
    assert "may live on: end it in your xAI account" in ended.stderr
    assert kept.read_bytes() == half
    assert own_login(home)["tokens"] is None
    assert sim.counters()["revocations"] == 0
    assert "There is no login" in run(environment(home, sim), "logout", "--yes").stdout


def test_nothing_to_log_out_of(home: Home, sim: Sim) -> None:
    """Without a login of the proxy's own there is nothing to end, and that is no error."""
    home.write_store(provider_store(sim.login()))
    ended = run(environment(home, sim), "logout")
    assert ended.returncode == 0
    assert "There is no login of the proxy's own." in ended.stdout
    assert sim.counters()["revocations"] == 0


# Both.


@pytest.mark.parametrize("command", [("login",), ("logout", "--yes")], ids=lambda words: words[0])
def test_a_file_of_another_version(home: Home, sim: Sim, command: tuple[str, ...]) -> None:
    """A login.json of a later version is left as it is, with exit code 3, which --help tells of."""
    own_file(home).parent.mkdir(mode=0o700, parents=True)
    own_file(home).write_text('{"version": 99, "provider": "xai-oauth"}')
    own_file(home).chmod(0o600)
    before = own_file(home).read_bytes()
    ended = run(settings_of(home, sim), *command)
    assert ended.returncode == 3
    assert "is no state file of this version" in ended.stderr
    assert own_file(home).read_bytes() == before
    assert (
        "3 login.json cannot be read or written" in run(settings_of(home, sim), command[0], "--help").stdout
    )
