"""What other processes get to see of the daemon's memory and environment, and of its keys: nothing."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from grok_oauth_proxy.cli.clients import Endpoint
from grok_oauth_proxy.credentials.api_key import ApiKey
from grok_oauth_proxy.credentials.client_keys import ClientKey, KeysFile
from grok_oauth_proxy.credentials.oauth import Refreshed
from grok_oauth_proxy.credentials.token import Grant, read_token
from grok_oauth_proxy.moving.books import Books
from grok_oauth_proxy.moving.document import Document
from grok_oauth_proxy.moving.surroundings import KEYS
from grok_oauth_proxy.proxy.front_door import FrontDoor
from grok_oauth_proxy.proxy.key_ring import KeyRing
from grok_oauth_proxy.proxy.replies import new_request_id
from grok_oauth_proxy.proxy.upstream import Request
from grok_oauth_proxy.settings import Settings
from tests.harness import UNPRIVILEGED, Home, Proxy, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim

SECRETS: dict[str, Any] = {"PROXY_API_KEY": "canary-of-the-proxy-key", "XAI_API_KEY": "canary-of-the-xai-key"}
FAMILY = 3
"""The daemon and its two workers."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what this asks for")


@pytest.fixture(scope="module")
def family(shared_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """The ids of a daemon that knows both keys, and of its workers."""
    home = Home(tmp_path_factory.mktemp("home"))
    home.write_store(provider_store(shared_sim.login()))
    secrets: dict[str, Any] = {**SECRETS}
    with proxy_running(home, shared_sim, by=UNPRIVILEGED, PROXY_WORKERS=FAMILY - 1, **secrets) as proxy:
        yield family_of(proxy)


def family_of(proxy: Proxy) -> list[int]:
    pid = proxy.process.pid
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def test_no_core_dumps(family: list[int]) -> None:
    """Neither the daemon nor a worker leaves its memory behind when it crashes."""
    limits = [Path(f"/proc/{pid}/limits").read_text().splitlines() for pid in family]
    found = [line.split()[4:6] for lines in limits for line in lines if line.startswith("Max core file size")]
    assert found == [["0", "0"]] * FAMILY


def test_not_dumpable() -> None:
    """The kernel's own switch is set as well, for systems that pipe dumps to a program whatever the limit."""
    asked = (
        "import ctypes, grok_oauth_proxy.secrecy as s; s.keep_memory_private();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    )
    assert subprocess.check_output([sys.executable, "-c", asked], text=True) == "0\n"


@pytest.mark.parametrize("file", ["environ", "maps"])
def test_closed_to_the_same_user(family: list[int], file: str) -> None:
    """Another program of the same user reads neither the environment nor the memory."""
    for pid in family:
        command = [*UNPRIVILEGED, "cat", f"/proc/{pid}/{file}"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "Permission denied" in ended.stderr


def test_process_list(family: list[int]) -> None:
    """Everybody may read the command lines and names, and no key stands there."""
    assert len(family) == FAMILY
    for pid in family:
        shown = Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/comm").read_text()
        assert "grok_oauth_proxy" in shown
        assert "canary" not in shown


def test_every_secret_setting_is_known() -> None:
    """What is kept from other programs is what the settings call secret."""
    secret = {name for name, field in Settings.model_fields.items() if SecretStr in _parts(field.annotation)}
    assert {name.upper() for name in secret} == KEYS == SECRETS.keys()


def _parts(annotation: object) -> tuple[object, ...]:
    return getattr(annotation, "__args__", (annotation,))


def test_programs_that_are_started(home: Home, shared_sim: Sim, tmp_path: Path) -> None:
    """Hermes, systemctl, ssh and a browser are started without our keys, and with all the rest."""
    home.write_store(provider_store(shared_sim.login()))
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("hermes", "systemctl", "ssh", "browser"):
        follow = 'exec curl -s -L -o /dev/null "$1"' if name == "browser" else "exit 255"
        (tools / name).write_text(f"#!/bin/sh\nenv > {tmp_path / name}.new\n{follow}\n")
        (tools / name).chmod(0o755)
    lower = {name.lower(): value for name, value in SECRETS.items()}  # which a setting may be written in
    env = environment(home, shared_sim, BROWSER=f"{tools / 'browser'} %s", **SECRETS, **lower, OF_MINE="here")
    env["PATH"] = f"{tools}:{env['PATH']}"
    run(env, "doctor", "--json")
    assert "ssh could not reach" in run(env, "push", "--host", "nowhere").stdout
    assert run(env, "login", "--browser").returncode == 0
    for name in ("hermes", "systemctl", "ssh", "browser"):
        given = (tmp_path / f"{name}.new").read_text()
        assert "OF_MINE=here" in given
        assert "canary" not in given, name


def test_reprs() -> None:
    """What is printed of an object in a log or a debugger holds no secret."""
    canary = "canary-secret"
    tokens = {"access_token": canary, "refresh_token": canary}
    objects = [
        Request("POST", canary.encode(), [(b"authorization", canary.encode())], canary.encode()),
        Books({"tokens": tokens}),
        Document(None, "https://auth.x.ai/oauth2/token", tokens),
        Endpoint("http://127.0.0.1:9996/v1", canary),
        Settings(proxy_api_key=SecretStr(canary), xai_api_key=SecretStr(canary)),
        Grant(read_token(canary), SecretStr(canary)),
        ApiKey(SecretStr(canary), print),
        Refreshed(Grant(read_token(canary), SecretStr(canary)), rotated=True),
        ring := KeyRing(KeysFile(Path("/nowhere/keys.json")), print, time.monotonic),
        FrontDoor(api_key=canary, ring=ring, allowed_hosts=(), allowed_origins=(), bound_host="127.0.0.1"),
        ClientKey("app", canary.encode(), "2026-07-20T12:00:00Z"),
    ]
    assert [thing for thing in map(repr, objects) if canary in thing] == []
    assert [thing for thing in map(str, objects) if canary in thing] == []


def test_request_ids_cannot_be_guessed() -> None:
    """They do not come from a generator that whoever has seen some of them can continue."""
    random.seed(1)
    first = [new_request_id() for _ in range(100)]
    random.seed(1)
    assert len({*first, *(new_request_id() for _ in range(100))}) == 200
    assert all(re.fullmatch("req_[0-9a-f]{24}", name) for name in first)
