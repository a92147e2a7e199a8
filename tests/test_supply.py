"""What is installed beside the proxy: these versions, these hashes, and nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "tests/requirements.lock", "tests/requirements-hermes.lock")


def locked(path: str) -> dict[str, str]:
    """Each name in a lock file with its version."""
    text = (ROOT / path).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[\w,-]+\])?==([^\s;]+)", text, re.M))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", LOCKS)
def test_the_lock_is_whole(path: str) -> None:
    """Every requirement has one version and at least one SHA-256; no other source is named."""
    logical = (ROOT / path).read_text().replace("\\\n", " ").splitlines()
    assert len(logical) > 10
    for line in logical:
        assert re.fullmatch(
            r"[\w.-]+(\[[\w,-]+\])?==[^\s;]+( *;[^#]*?)?( +--hash=sha256:[0-9a-f]{64})+ *", line
        ), line


def test_what_is_shipped_was_tested() -> None:
    """What users get is what the tests ran with, and holds every dependency of the project."""
    shipped, tested = locked("requirements.lock"), locked("tests/requirements.lock")
    assert shipped.items() <= tested.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in project["dependencies"]}
    assert wanted <= shipped.keys()


@pytest.mark.parametrize("path", ["install.sh", "scripts/test"])
def test_hashes_are_checked(path: str) -> None:
    """Whatever is installed from a lock file is checked against its hashes."""
    lines = [line for line in (ROOT / path).read_text().splitlines() if ".lock" in line]
    assert lines
    assert all("--require-hashes" in line for line in lines)
