"""Named keys end to end: made, sent, limited, counted and revoked, while the proxy runs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.credentials.users import NOBODY, as_root
from tests.harness import PATIENCE, Home, Json, Proxy, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim, client

OWN_KEY = "the-key-of-the-proxy"


@dataclass
class Keyed:
    """A proxy with keys, and those keys by their names."""

    proxy: Proxy
    keys: dict[str, str]
    environment: dict[str, str]

    def get(self, name: str, path: str = "/v1/models", **headers: str) -> httpx.Response:
        return self.proxy.http.get(path, headers={"authorization": f"Bearer {self.keys[name]}", **headers})

    def log(self, request_id: str) -> Json:
        line = self.proxy.err.wait_for(f".*{request_id}.*")[0]
        told: Json = json.loads(line)
        return told


def make(env: dict[str, str], name: str, *options: str) -> str:
    """`keys add`: the key, which is all of its standard output."""
    ended = run(env, "keys", "add", name, *options)
    assert ended.returncode == 0, ended.stderr
    key = ended.stdout.removesuffix("\n")
    assert key.startswith("gop_")
    assert key not in ended.stderr
    return key


@pytest.fixture(scope="module")
def keyed(shared_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    home = Home(tmp_path_factory.mktemp("keys"))
    home.write_store(provider_store(shared_sim.login()))
    env = environment(home, shared_sim, LOG_FORMAT="json", PROXY_API_KEY=OWN_KEY)
    keys = {
        "laptop": make(env, "laptop"),
        "slow": make(env, "slow", "--requests-per-minute", "2"),
        "one": make(env, "one", "--concurrent", "1"),
    }
    with proxy_running(home, shared_sim, LOG_FORMAT="json", PROXY_API_KEY=OWN_KEY) as proxy:
        yield Keyed(proxy, keys | {"": OWN_KEY, "wrong": "gop_" + "x" * 43}, env)


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_ways_to_send_it(keyed: Keyed, shared_sim: Sim) -> None:
    """Each way to send PROXY_API_KEY serves a named key too; it goes no further, and is logged by name."""
    key = keyed.keys["laptop"]
    for headers in (
        {"authorization": f"bearer {key}"},
        {"x-api-key": key},
        {"x-proxy-api-key": key, "authorization": "Bearer sk-other"},
    ):
        answer = keyed.proxy.http.post("/v1/echo", headers=headers, content=b"x")
        assert answer.status_code == 200
        assert key not in answer.text
        assert keyed.log(answer.headers["x-request-id"])["key"] == "laptop"
    url = keyed.proxy.url.replace("http", "ws", 1) + "/v1/realtime"
    protocols = [Subprotocol("realtime"), Subprotocol(f"openai-insecure-api-key.{key}")]
    with connect(url, subprotocols=protocols, proxy=None) as talk:
        assert key not in str(talk.recv(PATIENCE))
    line = json.loads(keyed.proxy.err.wait_for('.*"path": "/v1/realtime".*')[0])
    assert (line["status"], line["key"]) == (101, "laptop")
    assert key not in json.dumps(shared_sim.requests())


def test_own_key_beside(keyed: Keyed) -> None:
    """PROXY_API_KEY goes on working and has no name; without any key, or with a wrong one, there is a 401."""
    answer = keyed.get("")
    assert (answer.status_code, keyed.log(answer.headers["x-request-id"])["key"]) == (200, None)
    refused = keyed.get("wrong")
    assert error(refused) == (401, "invalid_api_key")
    assert "grok-oauth-proxy keys add" in refused.json()["error"]["message"]
    assert keyed.log(refused.headers["x-request-id"])["key"] is None
    assert error(keyed.proxy.http.get("/v1/models")) == (401, "invalid_api_key")
    assert keyed.proxy.http.get("/health").status_code == 200


def test_rate(keyed: Keyed, shared_sim: Sim) -> None:
    """The third request within a minute is refused at once, with the time to wait; others are not."""
    assert [keyed.get("slow").status_code for _ in range(2)] == [200, 200]
    before = shared_sim.counters()["api_requests"]
    refused = keyed.get("slow")
    assert error(refused) == (429, "key_rate_limited")
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert shared_sim.counters()["api_requests"] == before
    assert keyed.log(refused.headers["x-request-id"]) | {"key": "slow", "ending": "refused"} == keyed.log(
        refused.headers["x-request-id"]
    )
    assert keyed.get("laptop").status_code == 200
    assert keyed.proxy.metric('proxy_key_requests_total{key="slow",status="2xx"}') == 2
    assert keyed.proxy.metric('proxy_key_requests_total{key="slow",status="4xx"}') == 1
    assert keyed.proxy.metric('proxy_refused_total{reason="key_rate_limited"}') == 1


def test_concurrent(keyed: Keyed) -> None:
    """A second request beside an open one is refused at once, and passes when that has ended."""
    with (
        client(keyed.proxy.url, timeout=PATIENCE) as http,
        http.stream("GET", "/v1/models", headers={"x-api-key": keyed.keys["one"], "x-sim": "hang"}) as answer,
    ):
        assert answer.status_code == 200
        refused = keyed.get("one")
        assert error(refused) == (429, "key_busy")
        assert refused.headers["retry-after"] == "1"
        assert keyed.proxy.metric('proxy_key_requests_in_flight{key="one"}') == 1
    deadline = time.monotonic() + PATIENCE
    while keyed.proxy.metric('proxy_key_requests_in_flight{key="one"}'):
        assert time.monotonic() < deadline
    assert keyed.get("one").status_code == 200


def test_made_and_revoked_while_it_runs(keyed: Keyed) -> None:
    """A new key opens and a revoked one is refused within a second; the list shows names and limits."""
    made = make(keyed.environment, "guest", "--concurrent", "3", "--requests-per-minute", "9")
    keyed.keys["guest"] = made
    listed = run(keyed.environment, "keys", "list", "--json")
    told = json.loads(listed.stdout)
    assert told["demanded"] is True
    assert [key["name"] for key in told["keys"]] == ["laptop", "slow", "one", "guest"]
    assert (told["keys"][3]["requests_per_minute"], told["keys"][3]["concurrent"]) == (9, 3)
    assert made not in listed.stdout
    time.sleep(1)  # what is promised
    assert keyed.get("guest").status_code == 200
    ended = run(keyed.environment, "keys", "revoke", "guest")
    assert (ended.returncode, "last one" in ended.stdout) == (0, False)
    time.sleep(1)
    assert error(keyed.get("guest")) == (401, "invalid_api_key")
    assert keyed.get("laptop").status_code == 200


def test_damaged_while_it_runs(keyed: Keyed) -> None:
    """A file that was damaged by hand changes nothing, and the log says so once; a start is refused."""
    path = keyed.proxy.home.state.with_name("keys.json")
    whole = path.read_text()
    path.write_text(whole[:-20])
    time.sleep(1)
    assert keyed.get("laptop").status_code == 200
    keyed.proxy.err.wait_for("The keys known so far stay in force.*keys_unusable")
    ended = run(keyed.environment)
    assert ended.returncode == 3
    assert "is damaged" in ended.stderr
    assert "Traceback" not in ended.stderr
    path.write_text(whole)


@as_root
def test_replaced_by_another_user(keyed: Keyed) -> None:
    """A file that another user has put there lets nobody in, and the log says so."""
    path = keyed.proxy.home.state.with_name("keys.json")
    mine, theirs = path.rename(path.with_name("mine")), path.with_name("theirs")
    digest = hashlib.sha256(keyed.keys["wrong"].encode()).hexdigest()
    added = {"name": "guest", "sha256": digest, "added_at": "2026-01-01T00:00:00Z"}
    theirs.write_text(json.dumps({"version": 1, "keys": [added]}))
    os.chown(theirs, NOBODY, NOBODY)
    theirs.rename(path)
    time.sleep(1)
    assert error(keyed.get("wrong")) == (401, "invalid_api_key")
    keyed.proxy.err.wait_for("belongs to another user, so it is not used.*keys_unusable")
    assert keyed.get("laptop").status_code == 200
    mine.rename(path)


def test_the_first_and_the_last(home: Home, own_sim: Sim) -> None:
    """The first key closes a proxy that runs, to everybody else; revoking the last one does not open it."""
    home.write_store(provider_store(own_sim.login()))
    env = environment(home, own_sim)
    assert "There are no keys." in run(env, "keys", "list").stdout
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        key = make(env, "first")
        time.sleep(1)
        assert error(proxy.http.get("/v1/models")) == (401, "invalid_api_key")
        answer = proxy.http.get("/v1/models", headers={"x-api-key": key})
        assert answer.status_code == 200
        proxy.err.wait_for(f"{answer.headers['x-request-id']} key=first$")
        told = run(env, "keys", "revoke", "first").stdout
        assert "It was the last one" in told
        assert "remove the file and restart" in told
        time.sleep(1)
        assert error(proxy.http.get("/v1/models", headers={"x-api-key": key})) == (401, "invalid_api_key")
    ended = run(env | {"PROXY_HOST": "0.0.0.0"})
    assert (ended.returncode, "keys add NAME" in ended.stderr) == (3, True)


REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "bad-name": (("add", "a b"), 2, "letters, digits"),
    "long-name": (("add", "x" * 65), 2, "letters, digits"),
    "no-limit": (("add", "x", "--concurrent", "0"), 2, "from 1 to 1000000"),
    "too-high": (("add", "x", "--requests-per-minute", "60001"), 2, "from 1 to 60000"),
    "taken": (("add", "laptop"), 1, "There is a key laptop already"),
    "unknown": (("revoke", "nobody"), 1, "There is no key nobody"),
}


def test_refused_commands(keyed: Keyed) -> None:
    """What cannot be done is said in a line, with the right exit code, and no key is made."""
    for name, (arguments, code, sentence) in REFUSED.items():
        ended = run(keyed.environment, "keys", *arguments)
        assert (ended.returncode, ended.stdout) == (code, ""), name
        assert sentence in ended.stderr, name
        assert "Traceback" not in ended.stderr, name


def test_no_room_for_the_key(home: Home) -> None:
    """A key that cannot be printed is known to nobody, and stays none; nothing ends in a traceback."""
    env = environment(home)
    for arguments, message in ((["add", "a"], "so it is revoked"), (["list"], "Make room")):
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                [sys.executable, "-m", "grok_oauth_proxy", "keys", *arguments],
                env=env,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        assert ended.returncode == 1
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr
    assert json.loads(run(env, "keys", "list", "--json").stdout)["keys"] == []


def test_nowhere_to_print_the_key(home: Home) -> None:
    """Without a standard output no key is made that nobody would know."""
    line = f"exec {sys.executable} -m grok_oauth_proxy keys add a >&-"
    ended = subprocess.run(["/bin/sh", "-c", line], env=environment(home), stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert "no standard output" in ended.stderr
    assert not home.state.with_name("keys.json").exists()


def test_beyond_loopback(home: Home, own_sim: Sim, tmp_path: Path) -> None:
    """A named key is enough to listen beyond loopback, where it guards all; a short PROXY_API_KEY is not."""
    home.write_store(provider_store(own_sim.login()))
    keys = tmp_path / "elsewhere" / "keys.json"
    env = environment(home, own_sim, PROXY_HOST="0.0.0.0", PROXY_API_KEYS_FILE=keys)
    missing = run(env)
    assert (missing.returncode, "PROXY_API_KEYS_FILE names" in missing.stderr) == (3, True)
    key = make(env, "box")
    assert keys.stat().st_mode & 0o777 == 0o600
    assert run(env | {"PROXY_API_KEY": "short"}).returncode == 3
    with proxy_running(home, own_sim, PROXY_HOST="0.0.0.0", PROXY_API_KEYS_FILE=keys) as proxy:
        url = proxy.url.replace("0.0.0.0", "127.0.0.1")
        with client(url, timeout=PATIENCE) as http:
            for path in ("/health", "/metrics", "/v1/models"):
                assert error(http.get(path)) == (401, "invalid_api_key")
                assert http.get(path, headers={"x-api-key": key}).status_code == 200
        shown = json.loads(run(env, "status", "--json").stdout)
        assert shown["status"] == "wrong_key"
        assert "keys add NAME" in shown["message"]
        assert json.loads(run(env | {"PROXY_API_KEY": key}, "status", "--json").stdout)["status"] == "ok"
        for command in (("config", "curl"), ("env",)):
            told = run(env, *command)
            assert told.returncode == 0
            assert "grok-oauth-proxy keys add NAME" in told.stderr
            assert "sk-no-key-needed" not in told.stdout
        assert "OPENAI_BASE_URL" in told.stdout
        assert "OPENAI_API_KEY" not in told.stdout


def test_link_to_nothing(home: Home, own_sim: Sim) -> None:
    """A keys file that is a link to nothing opens no door: the start is refused."""
    home.write_store(provider_store(own_sim.login()))
    home.state.parent.mkdir(parents=True, mode=0o700)
    home.state.with_name("keys.json").symlink_to("nowhere")
    ended = run(environment(home, own_sim), "serve")
    assert (ended.returncode, "keys.json" in ended.stderr) == (3, True)


def test_last_key_revoked_beyond_loopback(home: Home, own_sim: Sim) -> None:
    """After the last key was revoked nobody comes in, and settings can still be read again."""
    home.write_store(provider_store(own_sim.login()))
    env = environment(home, own_sim, OTEL_PROPAGATORS="unknown")  # heeded by nobody
    assert run(env, "keys", "add", "one").returncode == 0
    with proxy_running(home, own_sim, PROXY_HOST="0.0.0.0", OTEL_PROPAGATORS="unknown") as proxy:
        assert run(env, "keys", "revoke", "one").returncode == 0
        proxy.process.send_signal(signal.SIGHUP)
        proxy.err.wait_for("The settings were read again")
        assert proxy.http.get("/health").status_code == 401
