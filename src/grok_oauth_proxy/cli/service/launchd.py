"""The proxy as a LaunchAgent of macOS.

Law: the agent is the one in grok_oauth_proxy/services, but for the values that name places of this install.
"""

from __future__ import annotations

import plistlib
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

import click

from grok_oauth_proxy.cli.service.asking import told_by
from grok_oauth_proxy.cli.service.files import MARK, File
from grok_oauth_proxy.cli.service.person import Person
from grok_oauth_proxy.cli.service.places import Places
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.settings import Settings

LABEL: Final = "local.grok-oauth-proxy"
_PLIST: Final = f"{LABEL}.plist"
_ENDS_WITHIN: Final = 100.0
"""Seconds; the agent gives an end 90 s."""
_POLL: Final = 0.2
_SHOWN: Final = re.compile(r"^\s*(state|pid|runs|last exit code) = (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Launchd:
    """An agent of `person`, who is logged in."""

    person: Person

    name = "launchd"
    for_system = False

    @property
    def service_file(self) -> Path:
        return self.person.home / "Library/LaunchAgents" / _PLIST

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.service_file,)

    @property
    def log_file(self) -> Path:
        return self.person.home / "Library/Logs/grok-oauth-proxy.log"

    @property
    def _domain(self) -> str:
        return f"gui/{self.person.uid}"

    def files(self, places: Places, _settings: Settings, *, socket: bool) -> list[File]:
        """What to write. Raises `click.UsageError`."""
        if socket:
            raise click.UsageError("--socket is for systemd. Leave it out here.")
        agent = plistlib.loads((files("grok_oauth_proxy") / "services" / _PLIST).read_bytes())
        agent["ProgramArguments"] = [*places.program, "serve"]
        agent["StandardOutPath"] = agent["StandardErrorPath"] = str(self.log_file)
        text = plistlib.dumps(agent, sort_keys=False).decode()
        own = f"<!-- {MARK}~/.config/grok-oauth-proxy.env -->\n"  # a path may hold --
        return [File(self.service_file, text.replace("<plist ", f"{own}<plist ", 1))]

    def start(self, *, socket: bool) -> list[list[str]]:  # noqa: ARG002 - as Systemd
        """The commands after the file is written; safe to run again."""
        again = [["launchctl", "bootout", f"{self._domain}/{LABEL}"]] if self.view() else []
        return [
            *again,
            ["launchctl", "enable", f"{self._domain}/{LABEL}"],
            ["launchctl", "bootstrap", self._domain, str(self.service_file)],
        ]

    @property
    def start_line(self) -> str:
        """What a person types to start it."""
        if self.view():
            return f"launchctl kickstart {self._domain}/{LABEL}"
        return shlex.join(["launchctl", "bootstrap", self._domain, str(self.service_file)])

    def stop(self) -> list[list[str]]:
        return [["launchctl", "bootout", f"{self._domain}/{LABEL}"]] if self.view() else []

    def forget(self) -> list[list[str]]:
        return []

    def linger(self) -> list[str] | None:
        return None

    def starts_with_machine(self) -> bool:
        return False

    def log_command(self, lines: int, *, follow: bool) -> list[str]:
        return ["tail", "-n", str(lines), *(["-F"] if follow else []), str(self.log_file)]

    def view(self) -> dict[str, str] | None:
        """What launchctl prints of the agent; None where it is not loaded."""
        told = _ask("print", f"{self._domain}/{LABEL}")
        return dict(_SHOWN.findall(told)) if told else None

    def require(self) -> None:
        """Raises `ProxyError` where there is no launchd for this person."""
        if _ask("print", self._domain) is None:
            raise ProxyError(
                f"launchd does not answer for {self.person.name}. Log in on the screen of this Mac, then "
                "run this again there.",
                code="no_manager",
            )


def wait_for_bootout(command: Sequence[str]) -> bool:
    """Whether `command` is a bootout that has come to its end; it goes on after launchctl has returned."""
    if command[:2] != ["launchctl", "bootout"]:
        return False
    deadline = time.monotonic() + _ENDS_WITHIN
    while _ask("print", command[2]) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def _ask(*arguments: str) -> str | None:
    return told_by(["launchctl", *arguments])
