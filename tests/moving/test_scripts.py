"""The scripts need a Python of 3.9 and nothing else, and are the commands."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness import provider_store, run
from tests.moving.side import ROOT, SCRIPTS, Side, command, link
from tests.sim.harness import Sim

MOVING = sorted((ROOT / "src/grok_oauth_proxy/moving").glob("*.py"))
FILES = [*MOVING, *sorted((ROOT / "scripts").glob("*_xai_oauth.py"))]


def python39() -> str | None:
    """A Python 3.9 that really starts, which the command of a version manager may not."""
    found = shutil.which("python3.9")
    if found is None:
        return None
    asked = subprocess.run(
        [found, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_syntax_of_39(path: Path) -> None:
    """Every file is Python 3.9: its syntax, and no union of types where it is evaluated."""
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    for node in ast.walk(tree):
        # What `from __future__ import annotations` spares is annotations; everything else is evaluated.
        if isinstance(node, ast.Call):
            assert not any(
                isinstance(argument, ast.BinOp)
                and isinstance(argument.op, ast.BitOr)
                and isinstance(node.func, ast.Name)
                and node.func.id == "isinstance"
                for argument in node.args
            )
            assert not any(keyword.arg in ("slots", "kw_only", "strict") for keyword in node.keywords)


def test_the_oldest_python(here: Side, there: Side, shared_sim: Sim) -> None:
    """A real Python 3.9 without any package exports and imports a login."""
    if (old := python39()) is None:
        pytest.skip("there is no python3.9 on PATH")
    tokens = here.sign_in(shared_sim)
    by = (old, "-I", "-S")
    exported = here.run_by(command("export", by=by))
    assert exported.returncode == 0, exported.stderr
    for options in ([], ["--own"]):
        imported = there.run_by(command("import", *options, by=by), given=exported.stdout)
        assert imported.returncode == 0, imported.stderr
        there.home.auth.unlink(missing_ok=True)
    assert link(tokens["refresh_token"]) == link(json.loads(there.own.read_text())["tokens"]["refresh_token"])
    for name in SCRIPTS:
        assert here.run_by(command(name, "--help", by=by)).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("export",),
        ("export", "--from", "own"),
        ("import", "/nowhere"),
        ("import", "--own", "--no-reset-proxy-state"),
        ("push", "--host", "-oProxyCommand=true"),
        ("push", "--host=-oProxyCommand=true"),
        ("push", "--host", "server", "--identity", "/nowhere"),
    ],
)
def test_commands_and_scripts_are_the_same(here: Side, shared_sim: Sim, arguments: tuple[str, ...]) -> None:
    """The installed command says, prints and ends with what the script does."""
    here.home.write_store(provider_store(shared_sim.login()))
    script, installed = here.run(*arguments), run(here.environment, *arguments)
    assert (script.stdout, script.returncode) == (installed.stdout, installed.returncode)
    assert script.stderr == installed.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_bad_options(here: Side, name: str) -> None:
    """Each explains itself, and a bad option is one line with exit code 2, in both."""
    script, installed = here.run(name, "--help"), run(here.environment, name, "--help")
    assert script.returncode == installed.returncode == 0
    options = [
        [word for word in ended.stdout.split() if word.startswith("--")] for ended in (script, installed)
    ]
    assert options[0] == options[1]
    for ended in (here.run(name, "--bogus"), run(here.environment, name, "--bogus")):
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)


def test_reauth_command(here: Side) -> None:
    """--print-reauth-command prints one line, which pushes with the same options from anywhere."""
    key = here.home.path / "a key"
    key.touch()
    options = ["--host", "me@server", "--identity", str(key), "--own", "--move"]
    ended = here.run("push", *options, "--print-reauth-command")
    assert (ended.returncode, ended.stderr, ended.stdout.count("\n")) == (0, "", 1)
    parts = subprocess.run(
        ["/bin/sh", "-c", f'for part in {ended.stdout.strip()}; do echo "$part"; done'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert parts == ["python3", str(ROOT / "scripts/refresh_remote_xai_oauth.py"), *options]
    installed = run(here.environment, "push", *options, "--print-reauth-command").stdout
    assert "grok_oauth_proxy push --host me@server" in installed
