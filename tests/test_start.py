"""The daemon starts closed: what is wrong is one line with the next step, and the right exit code."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.harness import (
    PATIENCE,
    UNPRIVILEGED,
    Home,
    environment,
    pool_store,
    provider_store,
    proxy_running,
    run,
)
from tests.sim.harness import Sim, client

NO_CLIENT_JWT = "eyJhbGciOiJub25lIn0.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln"


def refusal(env: dict[str, str], *, by: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit code and the one line of a refused start."""
    ended = run(env, by=by)
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.returncode, lines[0]


def test_missing_hermes_cli(home: Home, tmp_path: Path) -> None:
    """Without the Hermes CLI on PATH the daemon refuses and says how to get it or to do without."""
    env = environment(home, HERMES_CLI_REQUIRED="true", PATH=tmp_path)
    code, line = refusal(env)
    assert code == 3
    assert "pip install hermes-agent" in line
    assert "HERMES_CLI_REQUIRED=false" in line


def test_missing_store(home: Home) -> None:
    """Without auth.json the daemon refuses and says how to sign in."""
    code, line = refusal(environment(home))
    assert code == 3
    assert str(home.auth) in line
    assert "hermes auth add xai-oauth" in line


def test_unreadable_store(home: Home) -> None:
    """A store that cannot be read (here: a directory in its place) is named with the reason."""
    home.auth.mkdir()
    code, line = refusal(environment(home))
    assert code == 3
    assert "cannot be read: Is a directory" in line


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\x00\xff"])
def test_damaged_store(home: Home, content: str) -> None:
    """A store that is not a JSON object is called damaged and left as it is."""
    home.auth.write_text(content)
    code, line = refusal(environment(home))
    assert code == 3
    assert "damaged" in line
    assert home.auth.read_text() == content


@pytest.mark.parametrize(
    "store",
    [
        {"version": 1, "providers": {}},
        {"providers": {"xai-oauth": {"tokens": {"id_token": "x"}, "last_auth_error": {"code": "dead"}}}},
        {"providers": {"nous": {"access_token": "a", "refresh_token": "b"}}},
        {"credential_pool": {"xai-oauth": [{"access_token": "only-this"}]}},
        {"providers": [], "credential_pool": "?"},
    ],
    ids=["empty", "quarantined", "other-provider", "no-refresh-token", "odd-shape"],
)
def test_store_without_tokens(home: Home, store: dict[str, object]) -> None:
    """A store without a whole xAI login leads to the sign-in command."""
    home.auth.write_text(json.dumps(store))
    code, line = refusal(environment(home))
    assert code == 3
    assert "holds no xAI login. Sign in with `hermes auth add xai-oauth`, or with" in line


def test_no_client_id(home: Home) -> None:
    """Tokens whose claims name no client need XAI_OAUTH_CLIENT_ID, and the refusal says so."""
    home.write_store(pool_store({"access_token": NO_CLIENT_JWT, "refresh_token": "r"}))
    code, line = refusal(environment(home))
    assert code == 3
    assert "XAI_OAUTH_CLIENT_ID" in line


def test_client_id_from_setting(home: Home) -> None:
    """With XAI_OAUTH_CLIENT_ID the same tokens are served."""
    home.write_store(pool_store({"access_token": NO_CLIENT_JWT, "refresh_token": "r"}))
    with proxy_running(home, XAI_OAUTH_CLIENT_ID="client") as proxy:
        assert proxy.health()["status"] == "ok"


@pytest.mark.parametrize("key", ["", "fifteen-letters"])
def test_open_port_without_key(home: Home, own_sim: Sim, key: str) -> None:
    """An address beyond loopback needs a key of at least 16 characters."""
    home.write_store(provider_store(own_sim.login()))
    code, line = refusal(environment(home, own_sim, PROXY_HOST="0.0.0.0", PROXY_API_KEY=key))
    assert code == 3
    assert "PROXY_API_KEY" in line
    assert "fifteen-letters" not in line


def test_open_port_with_key_asks_for_it_everywhere(home: Home, own_sim: Sim) -> None:
    """Beyond loopback even /health and /metrics tell nothing without the key."""
    home.write_store(provider_store(own_sim.login()))
    key = "sixteen-letters!"
    with proxy_running(home, own_sim, PROXY_HOST="0.0.0.0", PROXY_API_KEY=key) as proxy:
        local = proxy.url.replace("0.0.0.0", "127.0.0.1")
        for path in ("/health", "/metrics", "/v1/models"):
            assert proxy.http.get(local + path).status_code == 401
            assert proxy.http.get(local + path, headers={"x-api-key": key}).status_code == 200
        # Whether a page exists, and what it takes, is told to nobody either.
        asked = [(m, p) for m in ("GET", "DELETE") for p in ("/health?deep=1", "/metrics", "/nothing", "/v1")]
        answers = [proxy.http.request(method, local + path) for method, path in asked]
        varying = {"x-request-id", "date"}
        heads = [{n: v for n, v in answer.headers.items() if n not in varying} for answer in answers]
        assert all(
            (a.status_code, a.text, h) == (401, answers[0].text, heads[0])
            for a, h in zip(answers, heads, strict=True)
        )
        assert "0.1" not in answers[0].text + str(heads[0])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PROXY_PORT", "ninety", "PROXY_PORT"),
        ("PROXY_APIKEY", "abc", "Did you mean PROXY_API_KEY"),
        ("PROXY_HOST", "no.such.host.invalid", "PROXY_HOST"),
        ("PROXY_HOST", "a..localhost", "PROXY_HOST"),
        ("ALL_PROXY", "ftp://127.0.0.1:1", "ALL_PROXY"),
        ("HTTPS_PROXY", "https://127.0.0.1:1", "HTTPS_PROXY"),
        ("HTTPS_PROXY", "http://[bad", "HTTPS_PROXY"),
        ("HTTPS_PROXY", "http://host:port", "HTTPS_PROXY"),
        ("ALL_PROXY", "socks5://me:p%C3%A4ss@127.0.0.1:1", "its login cannot be sent"),
        ("ALL_PROXY", f"socks5://{'m' * 256}:p@127.0.0.1:1", "its login cannot be sent"),
        ("HTTPS_PROXY", "http://a..b:80", "HTTPS_PROXY"),
    ],
)
def test_bad_configuration(home: Home, own_sim: Sim, name: str, value: str, said: str) -> None:
    """A bad value or a misspelt name ends with exit code 2 and names the variable in one line."""
    home.write_store(provider_store(own_sim.login()))
    code, line = refusal(environment(home, None, PROXY_API_KEY="k" * 16, **{name: value}))
    assert code == 2
    assert said in line


def test_bad_key_is_not_echoed(home: Home) -> None:
    """A key that is refused is not printed."""
    code, line = refusal(environment(home, PROXY_API_KEY="with blank and secret"))
    assert code == 2
    assert "secret" not in line


@pytest.mark.parametrize(
    ("number", "given", "said"),
    [
        ("99", "{}\n", "--worker 99 names no socket"),
        ("-1", "{}\n", "--worker -1 names no socket"),
        ("0", "[]\n", "--worker is for the proxy's own use"),
        ("0", "", "--worker is for the proxy's own use"),
        ("0", None, "--worker is for the proxy's own use"),
    ],
)
def test_worker_by_hand(home: Home, number: str, given: str | None, said: str) -> None:
    """What only a proxy may pass to its workers is refused from others in one line, with exit code 2."""
    command = [sys.executable, "-m", "grok_oauth_proxy", "serve", "--worker", number]
    if given is None:  # no standard input at all
        command = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command]
    ended = subprocess.run(
        command, env=environment(home), input=given, capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert said in line


def test_address_of_the_newest(home: Home, own_sim: Sim) -> None:
    """The address on file is that of the proxy started last; one that ends leaves another's alone."""
    home.write_store(provider_store(own_sim.login()))
    address = home.state.with_name("address")
    with proxy_running(home, own_sim) as older, proxy_running(home, own_sim) as newer:
        assert older.stop() == 0
        assert address.read_text() == newer.url + "\n"
    assert not address.exists()


def test_address_of_the_one_before(home: Home, own_sim: Sim) -> None:
    """When a second proxy ends, the address on file is that of the first again, which still runs."""
    home.write_store(provider_store(own_sim.login()))
    address = home.state.with_name("address")
    with proxy_running(home, own_sim) as older:
        with proxy_running(home, own_sim) as newer:
            assert newer.stop() == 0
        assert address.read_text() == older.url + "\n"
        assert older.stop() == 0
    assert not address.exists()


def test_address_that_was_stale(home: Home, own_sim: Sim) -> None:
    """An address nobody served at the start is not put back, whoever has taken its port meanwhile."""
    home.write_store(provider_store(own_sim.login()))
    address = home.state.with_name("address")
    address.parent.mkdir(mode=0o700, parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = free.getsockname()
    address.write_text(f"http://127.0.0.1:{place[1]}\n")
    with proxy_running(home, own_sim) as proxy, socket.create_server(place):
        assert proxy.stop() == 0
    assert not address.exists()


@pytest.mark.parametrize("what", ["link", "pipe", "bytes"])
def test_something_else_in_the_address_place(home: Home, shared_sim: Sim, what: str) -> None:
    """Whatever lies where the address is kept is neither waited for, nor read whole, nor written through."""
    home.write_store(provider_store(shared_sim.login()))
    address, precious = home.state.with_name("address"), home.path / "precious"
    address.parent.mkdir(mode=0o700, parents=True)
    precious.write_text("precious")

    def put() -> None:
        address.unlink(missing_ok=True)
        if what == "link":
            address.symlink_to(precious)
        elif what == "pipe":
            os.mkfifo(address)
        else:
            address.write_bytes(b"\xff\xfe" * 1000)

    put()
    with proxy_running(home, shared_sim) as proxy:
        assert address.read_text() == proxy.url + "\n"
        put()
        ended = run(environment(home, shared_sim), "status")
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        assert proxy.stop() == 0
        assert "Traceback" not in proxy.err.text()
    assert precious.read_text() == "precious"


def test_next_port(home: Home, own_sim: Sim) -> None:
    """A busy port is passed over for the next free one, said on start and kept in the state folder."""
    home.write_store(provider_store(own_sim.login()))
    with socket.create_server(("127.0.0.1", 0)) as busy:
        wanted = busy.getsockname()[1]
        with proxy_running(home, own_sim, PROXY_PORT=wanted) as proxy:
            taken = int(proxy.url.rsplit(":", 1)[1])
            assert wanted < taken <= wanted + 20
            assert f"Port {wanted} is in use" in "\n".join(proxy.err.lines)
            assert home.state.with_name("address").read_text() == proxy.url + "\n"
    assert not home.state.with_name("address").exists()


def test_unusable_state_folder(home: Home, own_sim: Sim) -> None:
    """A state folder that cannot be made is named before anything is served."""
    home.write_store(provider_store(own_sim.login()))
    (home.path / ".local").write_text("a file in the way")
    code, line = refusal(environment(home, own_sim))
    assert code == 3
    assert "GROK_PROXY_AUTH_STATE" in line


def test_state_behind_a_closed_door(home: Home, own_sim: Sim) -> None:
    """A state file below a folder that this user may not enter is named with the reason."""
    home.write_store(provider_store(own_sim.login()))
    closed = home.path / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0)
    env = environment(home, own_sim, GROK_PROXY_AUTH_STATE=closed / "inner" / "auth_state.json")
    code, line = refusal(env, by=UNPRIVILEGED)
    closed.chmod(0o700)
    assert code == 3
    assert "Permission denied" in line


def test_state_that_is_a_folder(home: Home, own_sim: Sim) -> None:
    """A folder where the state file should be is named, and its permissions are left alone."""
    home.write_store(provider_store(own_sim.login()))
    shared = home.path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    code, line = refusal(environment(home, own_sim, GROK_PROXY_AUTH_STATE=shared))
    assert code == 3
    assert "is a folder" in line
    assert shared.stat().st_mode & 0o777 == 0o755


def test_ipv6_in_brackets(home: Home, own_sim: Sim) -> None:
    """An IPv6 address may be written as in a URL."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_HOST="[::1]") as proxy:
        assert proxy.url.startswith("http://[::1]:")
        assert proxy.http.get("/v1/models").status_code == 200


def test_state_permissions_are_repaired(home: Home, own_sim: Sim) -> None:
    """State that others could read is made private before it is read, and that is reported."""
    home.write_store(provider_store(own_sim.login()))
    home.state.parent.mkdir(parents=True)
    home.state.parent.chmod(0o755)
    home.state.write_text("{}")
    home.state.chmod(0o644)
    with proxy_running(home, own_sim) as proxy:
        assert home.state.parent.stat().st_mode & 0o777 == 0o700
        assert home.state.stat().st_mode & 0o777 == 0o600
        assert sum("is now private" in line for line in proxy.err.lines) == 2


def test_corrupt_state_is_kept_aside(home: Home, own_sim: Sim) -> None:
    """A damaged state file is kept under another name and reported; the login is imported anew."""
    home.write_store(provider_store(own_sim.login()))
    home.state.parent.mkdir(parents=True)
    home.state.write_text("half a file {")
    with proxy_running(home, own_sim) as proxy:
        assert proxy.health()["status"] == "ok"
        assert "is kept as" in "\n".join(proxy.err.lines)
    assert home.state.with_name("auth_state.json.corrupt-1").read_text() == "half a file {"
    assert json.loads(home.state.read_text())["source"] == "hermes"


def test_state_of_another_program(home: Home, own_sim: Sim) -> None:
    """What is no state file of this version is left as it is: the start is refused."""
    home.write_store(provider_store(own_sim.login()))
    home.state.parent.mkdir(mode=0o700, parents=True)
    home.state.touch(mode=0o600)
    home.state.write_text('{"version": 99, "provider": "xai-oauth"}')
    code, line = refusal(environment(home))
    assert code == 3
    assert "no state file of this version, and is left as it is" in line
    assert home.state.read_text() == '{"version": 99, "provider": "xai-oauth"}'
    assert [path.name for path in home.state.parent.iterdir()] == ["auth_state.json"]


def test_state_in_the_place_of_the_store(home: Home, own_sim: Sim) -> None:
    """Hermes' store is not taken for the proxy's state file, whatever the setting says."""
    home.write_store(provider_store(own_sim.login()))
    before = home.auth.read_bytes()
    code, line = refusal(environment(home, GROK_PROXY_AUTH_STATE=home.auth))
    assert code == 2
    assert "names Hermes' own store" in line
    assert home.auth.read_bytes() == before


def test_closed_output(home: Home, own_sim: Sim) -> None:
    """Started with its standard streams closed, it serves, and ends in order."""
    home.write_store(provider_store(own_sim.login()))
    env = environment(home, own_sim)
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "grok_oauth_proxy"]
    with subprocess.Popen(command, env=env) as process:
        try:
            address = home.state.with_name("address")
            deadline = time.monotonic() + PATIENCE
            while not (address.exists() and address.read_text().endswith("\n")):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
            with client(address.read_text().strip()) as http:
                while _health(http) != 200:
                    assert time.monotonic() < deadline
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0


def _health(http: httpx.Client) -> int:
    try:
        return http.get("/health").status_code
    except httpx.HTTPError:
        return 0


def test_stops_cleanly(home: Home, own_sim: Sim) -> None:
    """SIGTERM ends the daemon with exit code 0 and without a traceback."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        assert proxy.stop() == 0
        assert "Traceback" not in proxy.err.text()


def test_empty_home(tmp_path: Path) -> None:
    """A HOME without a value is none: it does not mean the root folder."""
    env = {"PATH": os.environ["PATH"], "HOME": "", "HERMES_CLI_REQUIRED": "false"}
    code = "import os, runpy, sys; from pathlib import Path; sys.argv = ['x', '--version']\n"
    code += "try: runpy.run_module('grok_oauth_proxy', run_name='__main__')\n"
    code += "except SystemExit: print(Path.home())"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.stdout.splitlines()[-1] == str(Path(pwd.getpwuid(os.getuid()).pw_dir))


def test_module_without_arguments_is_the_daemon(home: Home) -> None:
    """`python -m grok_oauth_proxy` without a command means the daemon."""
    assert "auth.json does not exist" in refusal(environment(home))[1]


def test_json_from_the_first_line(home: Home, own_sim: Sim) -> None:
    """With LOG_FORMAT=json every line is an object, what is said before the first request too."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(
        home, own_sim, LOG_FORMAT="json", PROXY_HOST="0.0.0.0", PROXY_API_KEY="k" * 16
    ) as proxy:
        assert proxy.http.get("/health").status_code == 401
        assert proxy.stop() == 0
    said = [json.loads(line) for line in proxy.err.text().splitlines()]
    assert [line["level"] for line in said[:2]] == ["warning", "info"]
    assert "not encrypted" in said[0]["message"]
    assert said[2]["status"] == 401


_INTERRUPTED_AT = """
import os, runpy, signal, sys
at = sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal; in the background it is ignored
def interrupt(event, arguments):
    if event == "import" and arguments[0] == at:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
runpy.run_module("grok_oauth_proxy", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["click", "pydantic_settings", "fastapi", "grok_oauth_proxy.server"])
def test_interrupted(home: Home, shared_sim: Sim, module: str) -> None:
    """Ctrl-C while the daemon starts ends it with 130 and without a traceback, whatever is being loaded."""
    home.write_store(provider_store(shared_sim.login()))
    command = [sys.executable, "-c", _INTERRUPTED_AT, module, "serve"]
    env = environment(home, shared_sim)
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    told = ended.stdout + ended.stderr
    assert (ended.returncode, "Traceback" in told, "Aborted" in told) == (130, False, False)
