"""`env` and `config`: what they print makes real shells and real clients talk to the proxy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grok_oauth_proxy.cli.clients import Endpoint, exports
from tests.cli.canned import canned, closed_port
from tests.harness import PATIENCE, Home, Proxy, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim

KEY = """a-key'of"$HOME`id`\\n!;-1234"""
"""Every sign that means something to a shell, to Python, to YAML or to curl."""
QUESTION = "import openai; print(len(openai.OpenAI(max_retries=0).models.list().data), 'models')"


@pytest.fixture(scope="module")
def keyed(shared_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that asks for a key."""
    home = Home(tmp_path_factory.mktemp("keyed"))
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(home, shared_sim, PROXY_API_KEY=KEY) as proxy:
        yield proxy


def printed(env: dict[str, str], *arguments: str) -> str:
    """What a command prints; on standard error there is nothing."""
    ended = run(env, *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def shell(env: dict[str, str], *command: str, script: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command with `script` as its input, `grok-oauth-proxy` and this Python on PATH."""
    env = env | {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    return subprocess.run(
        command, env=env, input=script, capture_output=True, text=True, timeout=PATIENCE * 2, check=False
    )


@pytest.mark.parametrize("name", ["sh", "bash"])
def test_eval(keyed: Proxy, name: str) -> None:
    """After `eval "$(grok-oauth-proxy env)"` the openai SDK works without being told anything."""
    env = environment(keyed.home, PROXY_API_KEY=KEY)
    ended = shell(env, name, "-c", f'eval "$(grok-oauth-proxy env)"\npython -c "{QUESTION}"')
    assert (ended.stdout, ended.stderr) == ("7 models\n", "")


def test_curl_with_exports(keyed: Proxy) -> None:
    """The exported variables serve curl too, and all three have the values they should have."""
    env = environment(keyed.home, PROXY_API_KEY=KEY)
    script = """
        set -eu
        eval "$(grok-oauth-proxy env --shell bash)"
        curl -sS --fail -H "authorization: Bearer $OPENAI_API_KEY" "$OPENAI_BASE_URL/models" >/dev/null
        printf '%s\\n' "$OPENAI_BASE_URL" "$OPENAI_API_BASE" "$OPENAI_API_KEY"
    """
    ended = shell(env, "bash", script=script)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [f"{keyed.url}/v1", f"{keyed.url}/v1", KEY]


def test_without_key(shared_proxy: Proxy) -> None:
    """Where no key is asked for, a placeholder stands in for the one that clients insist on."""
    env = environment(shared_proxy.home)
    ended = shell(env, "sh", "-c", f'eval "$(grok-oauth-proxy env)"\npython -c "{QUESTION}"')
    assert (ended.stdout, ended.stderr) == ("7 models\n", "")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("fish", r"set -gx OPENAI_API_KEY 'it\'s a \\ \"'".replace(r"\"", '"')),
        ("powershell", """$env:OPENAI_API_KEY = 'it''s a \\ "'"""),
    ],
)
def test_other_shells(name: str, line: str) -> None:
    """fish knows two escapes between single quotes, PowerShell a doubled quote."""
    assert exports(Endpoint("http://x/v1", "it's a \\ \""), name).splitlines()[2] == line


def test_endpoint_hides_its_key() -> None:
    """The key is not in what a debugger or a log would show of an endpoint."""
    assert KEY not in repr(Endpoint("http://x/v1", KEY))


def test_not_running(home: Home) -> None:
    """When nothing runs, the configured address is printed, and standard error says that nothing runs."""
    ended = run(environment(home, PROXY_PORT=9997), "env")
    assert ended.returncode == 0
    assert "http://127.0.0.1:9997/v1" in ended.stdout
    assert "Start it with `grok-oauth-proxy serve`" in ended.stderr


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("0.0.0.0", "http://127.0.0.1:9996/v1"),
        ("::", "http://[::1]:9996/v1"),
        ("::1", "http://[::1]:9996/v1"),
    ],
)
def test_configured_address(home: Home, host: str, address: str) -> None:
    """A client is sent to an address it can connect to."""
    ended = run(environment(home, PROXY_HOST=host, PROXY_PORT=9996), "env")
    assert f"OPENAI_BASE_URL={address}" in ended.stdout.replace("'", "")


def test_any_port(home: Home) -> None:
    """With PROXY_PORT=0 only a running proxy has an address: nothing is printed, and the exit code is 1."""
    for command in (("env",), ("config", "curl")):
        ended = run(environment(home), *command)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "Start it first" in ended.stderr


def test_wrong_key(keyed: Proxy) -> None:
    """A key that the running proxy does not take is told on standard error; nothing reaches the API."""
    for settings in ({}, {"PROXY_API_KEY": "another-key"}):
        ended = run(environment(keyed.home) | settings, "env")
        assert ended.returncode == 0
        assert "wants another key" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_led_away(shared_proxy: Proxy) -> None:
    """A proxy variable that clients would heed on this address is told, with the name to add to NO_PROXY."""
    env = environment(shared_proxy.home, ALL_PROXY=f"http://127.0.0.1:{closed_port()}")
    assert "Add 127.0.0.1 to NO_PROXY" in run(env, "env").stderr
    assert run(env | {"NO_PROXY": "127.0.0.1"}, "env").stderr == ""


def test_curl(keyed: Proxy, shared_proxy: Proxy) -> None:
    """The curl snippet, run by sh, gets an answer, with a key and without one."""
    for proxy, settings in ((keyed, {"PROXY_API_KEY": KEY}), (shared_proxy, {})):
        env = environment(proxy.home) | settings
        ended = shell(env, "sh", script=printed(env, "config", "curl"))
        assert ended.stderr == ""
        assert "You said: Hello" in ended.stdout


def test_curl_hides_the_key(keyed: Proxy, tmp_path: Path) -> None:
    """The key is not among the arguments of curl, where `ps` would show it, but on its standard input."""
    seen = tmp_path / "curl"
    seen.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$0.arguments"\ncat >"$0.input"\n')
    seen.chmod(0o755)
    env = environment(keyed.home, PROXY_API_KEY=KEY)
    snippet = printed(env, "config", "curl")
    assert shell(env | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, "sh", script=snippet).returncode == 0
    assert "Bearer" not in (tmp_path / "curl.arguments").read_text()
    assert "Bearer" in (tmp_path / "curl.input").read_text()


def test_openai(keyed: Proxy) -> None:
    """The openai snippet, run as a program, prints the model's answer."""
    env = environment(keyed.home, PROXY_API_KEY=KEY)
    ended = shell(env, "python", "-", script=printed(env, "config", "openai"))
    assert ended.stderr == ""
    assert "You said: Hello" in ended.stdout


@pytest.mark.parametrize(
    "arguments", [("config",), ("config", "vim"), ("env", "--shell", "csh"), ("status", "now")]
)
def test_bad_argument(home: Home, arguments: tuple[str, ...]) -> None:
    """A bad argument ends with 2 and what would be right."""
    ended = run(environment(home), *arguments)
    assert ended.returncode == 2
    assert "Usage: grok-oauth-proxy" in ended.stderr


def test_stranger(home: Home) -> None:
    """Another program at the old address is not taken for the proxy: the configured address is printed."""
    with canned() as stranger:
        stranger.pose_as_running(home)
        ended = run(environment(home, PROXY_PORT=9996, PROXY_API_KEY=KEY), "env")
        assert "Another program answers" in ended.stderr
        assert "http://127.0.0.1:9996/v1" in ended.stdout
        assert stranger.asked == [("/health", None)]
