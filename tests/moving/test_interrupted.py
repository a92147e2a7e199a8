"""Killed before each thing it does to a file, in turn: no login is lost, and none gets two owners."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.harness import PATIENCE, Json, provider_store
from tests.moving.side import Side, as_kept, code_in, command, link
from tests.sim.harness import CLIENT, Sim

_KILLED_AT = """
import os, runpy, signal, sys
left, home, script = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def count(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(home):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
sys.argv[:] = sys.argv[3:]
runpy.run_path(script, run_name="__main__")
"""


def killed_at(step: int, side: Side, given: str, *arguments: str) -> bool:
    """Run a command until the step of this number (a file opened, renamed, removed); was it killed there?"""
    by = (sys.executable, "-I", "-S", "-c", _KILLED_AT, str(step), str(side.home.path))
    ended = subprocess.run(
        command(*arguments, by=by),
        env=side.environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode != 0


def left_behind(side: Side, sim: Sim) -> Json:
    """A store with a spent link, whose successor only the state file has; the successor."""
    first = sim.login()
    second: Json = sim.refresh(first["refresh_token"]).json()
    side.home.write_store(provider_store(first))
    follows = {link(first["refresh_token"]): link(second["refresh_token"])}
    side.write_books(successors=follows, tokens=as_kept(second), client_id=CLIENT)
    return second


def test_import(here: Side, there: Side, shared_sim: Sim) -> None:
    """Wherever an import is killed, both logins are there, and doing it again completes it."""
    new = here.sign_in(shared_sim)
    document = json.dumps(here.export())
    step, done = 0, False
    while not done:
        old = left_behind(there, shared_sim)
        done = not killed_at(step, there, document, "import")
        everywhere = json.dumps(there.files())
        assert old["refresh_token"] in everywhere, f"lost at step {step}"
        in_use = there.export()["tokens"]["refresh_token"]
        assert in_use in (old["refresh_token"], new["refresh_token"]), f"neither at step {step}"
        assert there.run("import", given=document).returncode == 0
        assert there.home.refresh_tokens() == {new["refresh_token"]}
        assert old["refresh_token"] in json.dumps(there.files())
        for kept in there.home.auth.parent.glob("auth.replaced-*"):
            kept.unlink()
        step += 1
    assert step > 10


def test_move(here: Side, there: Side, shared_sim: Sim) -> None:
    """Wherever `export --move` is killed, the login is here whole or not at all; again, it is not."""
    here.sign_in(shared_sim)
    code = code_in(there.run("import", given=json.dumps(here.export())).stdout)
    before = here.home.auth.read_text()
    moving = json.loads(before)["providers"]["xai-oauth"]["tokens"]
    books = {"tokens": as_kept(moving), "client_id": CLIENT}
    step, done = 0, False
    while not done:
        here.home.auth.write_text(before)
        here.write_books(**books)
        done = not killed_at(step, here, f"{code}\n", "export", "--move")
        if here.home.auth.read_text() == before:
            assert here.export()["tokens"]["refresh_token"] == moving["refresh_token"]
            assert not killed_at(1000, here, f"{code}\n", "export", "--move")
        assert here.home.refresh_tokens() == set()
        assert "holds no xAI login" in here.run("export").stderr
        step += 1
    assert step > 5
    assert here.read_books()["tokens"] is None
    assert Path(there.home.auth).exists()
