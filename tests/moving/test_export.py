"""`export`: the living login, all of it, nothing else, and in nobody else's sight."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import PATIENCE, Json, pool_store, provider_store
from tests.moving.side import Side, as_kept, books, command, is_silent_about, link, mode
from tests.sim.harness import CLIENT, Sim

SHAPES = {"provider": provider_store, "pool": pool_store}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_printed(here: Side, shared_sim: Sim, shape: str) -> None:
    """Of either shape of store, the document holds what the import needs, and the warning is elsewhere."""
    tokens = shared_sim.login()
    here.home.write_store(SHAPES[shape](tokens))
    ended = here.run("export")
    assert ended.returncode == 0
    document = json.loads(ended.stdout)
    assert document.keys() == {"version", "provider", "client_id", "token_endpoint", "tokens"}
    assert document["client_id"] == CLIENT
    # Only a provider's block says where its login is refreshed; else the setting does.
    issuer = "https://auth.x.ai" if shape == "provider" else shared_sim.url
    assert document["token_endpoint"] == f"{issuer}/oauth2/token"
    assert {name: tokens[name] for name in document["tokens"]} == document["tokens"]
    assert {"access_token", "refresh_token", "token_type"} <= document["tokens"].keys()
    assert "the login now has two owners" in ended.stderr
    assert "--move" in ended.stderr


def test_nobody_is_signed_in(here: Side) -> None:
    """Without any login both ways to sign in are named, and a file that is not there is not called empty."""
    for there, cause in ((False, "does not exist"), (True, "holds no xAI login")):
        if there:
            here.home.write_store({})
        ended = here.run("export")
        assert (ended.returncode, ended.stdout) == (1, "")
        sign_in = "Sign in with `hermes auth add xai-oauth`, or with `grok-oauth-proxy login`."
        assert f"{here.home.auth} {cause}. {sign_in}" in ended.stderr


def test_the_own_login_first(here: Side, shared_sim: Sim) -> None:
    """The proxy's own login goes before Hermes', unless Hermes' is asked for or the own one is dead."""
    hermes, own = here.sign_in(shared_sim), shared_sim.login()
    write_own(here, own)
    assert here.export()["tokens"]["refresh_token"] == own["refresh_token"]
    assert here.export("--from", "own")["tokens"]["refresh_token"] == own["refresh_token"]
    assert here.export("--from", "hermes")["tokens"]["refresh_token"] == hermes["refresh_token"]
    write_own(here, own, dead={link(own["refresh_token"]): "invalid_grant"})
    assert here.export()["tokens"]["refresh_token"] == hermes["refresh_token"]
    ended = here.run("export", "--from", "own")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "refused the login" in ended.stderr


def write_own(side: Side, tokens: Json, **changes: object) -> None:
    side.own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    side.own.write_text(json.dumps(books(source="own", client_id=CLIENT, tokens=as_kept(tokens)) | changes))


def test_the_successor_of_a_spent_link(here: Side, shared_sim: Sim) -> None:
    """Of a store that was left behind with a spent link, the successor that the proxy knows is exported."""
    first = here.sign_in(shared_sim)
    second = shared_sim.refresh(first["refresh_token"]).json()
    follows = {link(first["refresh_token"]): link(second["refresh_token"])}
    here.write_books(successors=follows, tokens=as_kept(second))
    assert here.export()["tokens"]["refresh_token"] == second["refresh_token"]


def test_what_is_never_exported(here: Side, shared_sim: Sim) -> None:
    """A spent link without a known successor, a dead one, one in doubt: exit code 1, nothing on stdout."""
    tokens = here.sign_in(shared_sim)
    mine = link(tokens["refresh_token"])
    for changes, sentence in (
        ({"successors": {mine: "f" * 32}}, "has been spent, and its successor is not here"),
        ({"dead": {mine: "invalid_grant"}}, "has refused the login"),
        ({"dead": {mine: f"invalid_client {CLIENT}"}}, "has refused the login"),
        ({"sending": {"link": mine, "at": 1.0}}, "may be spent"),
        ({"version": 2}, "unknown shape"),
        ({"successors": []}, "unknown shape"),
    ):
        here.write_books(**changes)
        ended = here.run("export")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert sentence in ended.stderr
        assert ended.stderr.count("\n") == 1
        assert is_silent_about(ended, tokens)
    here.write_books(dead={mine: "invalid_client of-another"})
    assert here.export()["tokens"]["refresh_token"] == tokens["refresh_token"]


def test_no_login(here: Side) -> None:
    """Without a login, and with a damaged store, one line says what to do."""
    for content in (None, "{}", "[", '{"providers": {"xai-oauth": {"tokens": {"refresh_token": "r"}}}}'):
        if content is not None:
            here.home.auth.write_text(content)
        ended = here.run("export")
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert here.run("export", "--from", "elsewhere").returncode == 2


def test_output_file(here: Side, shared_sim: Sim) -> None:
    """--output makes a file that only its owner can read, and never replaces one, a login least of all."""
    tokens = here.sign_in(shared_sim)
    target = here.home.path / "xai-oauth.json"
    before = os.umask(0)
    try:
        ended = here.run("export", "--output", str(target))
    finally:
        os.umask(before)
    assert (ended.returncode, ended.stdout, mode(target)) == (0, "", 0o600)
    assert json.loads(target.read_text())["tokens"]["refresh_token"] == tokens["refresh_token"]
    store = here.home.auth.read_text()
    for taken in (target, here.home.auth):
        ended = here.run("export", "--output", str(taken))
        assert ended.returncode == 1
        assert "exists already" in ended.stderr
    assert here.home.auth.read_text() == store
    assert is_silent_about(ended, tokens)


def test_output_of_a_shell(here: Side, shared_sim: Sim) -> None:
    """The file of `> FILE`, which a shell makes readable for everybody, is closed to others."""
    here.sign_in(shared_sim)
    target = here.home.path / "xai-oauth.json"
    target.touch(mode=0o644)
    target.chmod(0o644)
    with target.open("w") as file:
        subprocess.run(command("export"), env=here.environment, stdout=file, check=True, timeout=PATIENCE)
    assert mode(target) == 0o600
    assert json.loads(target.read_text())["provider"] == "xai-oauth"


def test_a_lock_that_is_held(here: Side, shared_sim: Sim) -> None:
    """The login is read under Hermes' lock: an export waits for whoever refreshes it now."""
    first = here.sign_in(shared_sim)
    with here.locked():
        process = subprocess.Popen(
            command("export"), env=here.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_until_open(process.pid, here.home.auth.with_name("auth.lock"))
        here.home.write_store(provider_store(second := shared_sim.refresh(first["refresh_token"]).json()))
    out, _ = process.communicate(timeout=PATIENCE)
    assert json.loads(out)["tokens"]["refresh_token"] == second["refresh_token"]


def wait_until_open(pid: int, path: Path) -> None:
    """Wait until the process has this file open, so that it is at its lock."""
    while not any(leads_to(entry, path) for entry in Path(f"/proc/{pid}/fd").iterdir()):
        pass


def leads_to(descriptor: Path, path: Path) -> bool:
    try:
        return descriptor.readlink() == path
    except FileNotFoundError:  # closed meanwhile
        return False


def test_a_disk_that_is_full(here: Side, shared_sim: Sim) -> None:
    """An output that takes nothing is said in one line, and with --move nothing is removed."""
    tokens = here.sign_in(shared_sim)
    for options in ((), ("--move",)):
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                command("export", *options),
                env=here.environment,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        assert ended.returncode == 1
        assert "could not be written: No space left" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert here.home.refresh_tokens() == {tokens["refresh_token"]}


def test_a_login_that_names_no_client(here: Side, shared_sim: Sim) -> None:
    """A login whose client nobody names is exported once XAI_OAUTH_CLIENT_ID does."""
    tokens = shared_sim.login() | {"access_token": "opaque", "id_token": None}
    here.home.write_store(pool_store(tokens))
    ended = here.run("export")
    assert ended.returncode == 1
    assert "Set XAI_OAUTH_CLIENT_ID" in ended.stderr
    here.settings["XAI_OAUTH_CLIENT_ID"] = "client-7"
    assert here.export()["client_id"] == "client-7"


def test_streams_that_are_closed(here: Side, shared_sim: Sim) -> None:
    """Started without stdin and stdout, neither the lock nor the login takes their place."""
    tokens = here.sign_in(shared_sim)
    for options, said in (
        ((), "no standard output to export to"),
        (("--output", str(here.home.path / "out.json")), "The confirmation code was not given"),
    ):
        line = " ".join(command("export", "--move", *options))
        ended = here.run_by(["/bin/sh", "-c", f"exec {line} <&- >&-"])
        assert ended.returncode == 1
        assert said in ended.stderr
    assert here.home.refresh_tokens() == {tokens["refresh_token"]}
    assert here.home.auth.with_name("auth.lock").read_text() == ""
