"""Checks of what is installed: Python, this package and what it needs, Hermes' command line."""

from __future__ import annotations

import csv
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Final

from grok_oauth_proxy import __version__
from grok_oauth_proxy.cli.checks.finding import Finding, note, ok, wrong
from grok_oauth_proxy.moving.surroundings import without_keys

_OLDEST: Final = (3, 11)
_INSTALL_AGAIN: Final = "Run ./install.sh again."
_PATIENCE: Final = 6.0
"""Seconds for `hermes --version`."""


def check_python() -> list[Finding]:
    found = f"Python {platform.python_version()} at {sys.executable}"
    if sys.version_info < _OLDEST:
        return [wrong("python", f"{found} is too old.", f"Install Python 3.11 or newer. {_INSTALL_AGAIN}")]
    return [ok("python", f"{found}.")]


def check_installation() -> list[Finding]:
    """The package's files are there, of one version, with all that it needs."""
    try:
        package = distribution("grok-oauth-proxy")
    except PackageNotFoundError:
        return [
            wrong("install", "The package is not installed; its files are run as they lie.", _INSTALL_AGAIN)
        ]
    if package.version != __version__:
        sentence = f"The code is of version {__version__}, its installation of {package.version}."
        return [wrong("install", sentence, _INSTALL_AGAIN)]
    if missing := _missing_files(package):
        return [
            wrong("install", f"{len(missing)} of its files are missing, {missing[0]} first.", _INSTALL_AGAIN)
        ]
    if missing := [name for name in _needed(package) if not _is_installed(name)]:
        return [wrong("install", f"Packages are missing: {', '.join(missing)}.", _INSTALL_AGAIN)]
    if not _is_installed("uvloop"):
        return [note("install", "It is whole, but without uvloop it is slower.", _INSTALL_AGAIN)]
    return [ok("install", f"grok-oauth-proxy {__version__} is whole; its event loop is uvloop.")]


def _missing_files(package: Distribution) -> list[str]:
    # `files` leaves out what is missing, from Python 3.12 on.
    record = csv.reader((package.read_text("RECORD") or "").splitlines())
    names = [row[0] for row in record if row and row[0].endswith(".py")]
    return [name for name in names if not Path(str(package.locate_file(name))).exists()]


def _needed(package: Distribution) -> list[str]:
    """The names of its dependencies, those for certain platforms or extras left out."""
    always = [line for line in package.requires or [] if ";" not in line]
    return [match[0] for line in always if (match := re.match(r"[A-Za-z0-9._-]+", line))]


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def check_hermes_cli(*, required: bool) -> list[Finding]:
    """The `hermes` command and its version; `required`: the proxy does not start without it."""
    command = shutil.which("hermes")
    if command is None:
        fix = (
            "Sign in with `grok-oauth-proxy login`, which needs no Hermes; or install it with `pip install "
            "hermes-agent`; or set HERMES_CLI_REQUIRED=false."
        )
        if required:
            return [wrong("hermes", "The Hermes CLI (hermes) is not on PATH.", fix)]
        return [note("hermes", "The Hermes CLI (hermes) is not on PATH, and is not required.")]
    told = _first_line([command, "--version"])
    if not told:
        return [note("hermes", f"{command} does not tell its version.", "Try `hermes --version` yourself.")]
    return [ok("hermes", f"{told} at {command}.")]


def _first_line(command: list[str]) -> str:
    # Unbuffered, because it may look for updates, and time may be over before it has ended.
    unbuffered = {**without_keys(), "PYTHONUNBUFFERED": "1"}
    try:
        told = subprocess.run(  # noqa: S603 - what the user calls hermes
            command,
            env=unbuffered,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as late:
        told = late.stdout or b""
    except OSError:
        return ""
    lines = told.decode("utf-8", "replace").splitlines()
    return lines[0].strip()[:80] if lines else ""
