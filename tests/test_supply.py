"""What is installed beside the proxy: these versions, these hashes, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEPENDENCIES = ROOT / "docs" / "dependencies.md"
LOCKS = (
    "requirements.lock",
    "requirements-otel.lock",
    "tests/requirements.lock",
    "tests/requirements-hermes.lock",
)


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


@pytest.mark.parametrize(
    ("says", "code", "told"),
    [
        ("echo No known vulnerabilities found", 0, ""),
        ("echo 'Found 1 known vulnerability in 1 package'; echo evil 1.0 CVE-1; exit 1", 1, "CVE-1"),
        ("echo 'uvicorn Dependency not found on PyPI and could not be audited'", 0, "cannot be reached"),
        ("echo ConnectionError >&2; exit 1", 0, "cannot be reached"),
        ("exec sleep 60", 0, "cannot be reached"),
    ],
    ids=["none", "one", "unknown", "no network", "silence"],
)
def test_audit(tmp_path: Path, says: str, code: int, told: str) -> None:
    """A known vulnerability fails the check; that nothing could be asked is one line, and soon said."""
    program = tmp_path / "bin" / "pip-audit"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    ended = subprocess.run(
        [ROOT / "scripts" / "audit"],
        env={"PATH": os.environ["PATH"], "GROK_PROXY_TEST_ENV": str(tmp_path), "AUDIT_TIMEOUT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code
    assert told in ended.stderr
    assert len(ended.stderr.splitlines()) == {"": 0, "CVE-1": 2}.get(told, 1)


def test_dependencies_are_listed() -> None:
    """docs/dependencies.md names each package that is shipped with its licence, as its metadata says it."""
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \|$", DEPENDENCIES.read_text(), re.M))
    listed.pop("package")  # the table's head
    shipped = locked("requirements.lock")
    assert listed == {name: licence(name) for name in shipped}


def test_each_dependency_has_its_reason() -> None:
    """What pyproject.toml asks for has a section of its own there, and nothing else has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in project["dependencies"]}
    assert set(re.findall(r"^### ([a-z0-9-]+)$", DEPENDENCIES.read_text(), re.M)) == wanted


def licence(name: str) -> str:
    """As the package names it: an SPDX expression, or its older field, or a classifier."""
    told = metadata.metadata(name)
    classifiers = [
        text.rpartition(" :: ")[2] for text in told.get_all("Classifier", []) if "License ::" in text
    ]
    fields = [told[field] for field in ("License-Expression", "License") if field in told]
    return next(filter(None, fields), ", ".join(classifiers))
