"""install.sh, in a copy of the tree: it sets everything up, can be run again, and fails in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = ("install.sh", "pyproject.toml", "README.md", "LICENSE", "requirements.lock", "scripts", "src")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What install.sh needs of the tree, with nothing that was made here."""
    for name in NEEDED:
        source, target = ROOT / name, tmp_path / "tree" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, target)
    return tmp_path / "tree"


def install(tree: Path, *arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    # The rest of the environment says how packages are reached, which is not the proxy's affair.
    env = dict(os.environ) | {"PATH": path, "HOME": str(tree)}
    env.pop("PYTHON", None)
    return subprocess.run(
        ["/bin/bash", "install.sh", *arguments],
        cwd=tree,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_install_twice(tree: Path) -> None:
    """It installs a command that works, prints the next step, and a second run changes nothing of that."""
    for _ in range(2):
        ended = install(tree)
        assert ended.returncode == 0, ended.stderr
        assert "hermes auth add xai-oauth" in ended.stdout
        command = tree / ".venv/bin/grok-oauth-proxy"
        shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
        assert shown.stdout.startswith("grok-oauth-proxy, version")


def test_install_without_python(tree: Path, tmp_path: Path) -> None:
    """Without Python 3.11 it ends with one line that says what to install, and makes nothing."""
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("dirname", "rm"):
        (bare / tool).symlink_to(shutil.which(tool) or tool)
    old = bare / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    ended = install(tree, path=str(bare))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "Python 3.11 or newer is needed" in ended.stderr
    assert not (tree / ".venv").exists()


def test_install_unknown_option(tree: Path) -> None:
    """An option it does not know is named, with the ones it does."""
    ended = install(tree, "--dmeo")
    assert ended.returncode == 2
    assert ended.stderr == "Unknown option: --dmeo. Use ./install.sh or ./install.sh --demo.\n"
