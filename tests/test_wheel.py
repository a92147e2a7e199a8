"""What is built: the same bytes wherever that is done, all that is needed, and the thing that is tested."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import grok_oauth_proxy

ROOT = Path(__file__).parent.parent
TRACKED = (
    "src",
    "tests",
    "docs",
    "services",
    "scripts",
    "*.md",
    "LICENSE",
    "install.sh",
    "requirements.lock",
)
"""What a source distribution is made of, beside pyproject.toml."""


def copied(target: Path) -> Path:
    """The project, its files younger and with other permissions."""
    target.mkdir(parents=True)
    for pattern in (*TRACKED, "pyproject.toml", ".gitignore"):
        for path in ROOT.glob(pattern):
            if path.is_dir():
                shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target)
    for path in target.rglob("*"):
        os.utime(path)
        path.chmod(path.stat().st_mode | 0o020)
    return target


def built(folder: Path) -> dict[str, str]:
    """The hash of each distribution that is built there."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", "dist"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "dist").iterdir()}


def test_built_twice(tmp_path: Path) -> None:
    """From two folders, at two times, both distributions have the same hashes, and hold what they must."""
    one, other = copied(tmp_path / "one"), copied(tmp_path / "another" / "place")
    hashes = built(one)
    assert len(hashes) == 2
    assert built(other) == hashes
    wheel, source = sorted((one / "dist").iterdir(), key=lambda path: path.suffix != ".whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"grok_oauth_proxy/py.typed", "grok_oauth_proxy/__main__.py"} <= names
    assert not [name for name in names if not name.startswith("grok_oauth_proxy")]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(source) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "install.sh", "requirements.lock", "PKG-INFO"}
    needed |= {
        "scripts/test",
        "tests/requirements.lock",
        "tests/http1/corpus/cl-te.http",
        "src/grok_oauth_proxy/py.typed",
    }
    assert needed <= inside


def test_what_is_tested_is_the_wheel() -> None:
    """The imported package is, file by file, what stands in the wheel that scripts/test has built."""
    if (folder := os.environ.get("GROK_PROXY_TEST_WHEEL")) is None:
        pytest.skip("not run by scripts/test, which installs the wheel")
    place = Path(grok_oauth_proxy.__file__).parent
    assert place.parent.name == "site-packages"
    [wheel] = Path(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name: archive.read(name) for name in archive.namelist() if name.startswith("grok_oauth_proxy/")
        }
    installed = {
        str(path.relative_to(place.parent)): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert installed == packed
