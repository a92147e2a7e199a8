"""The proxy as a unit of systemd: of a user's own manager, or of the system.

Law: the unit is the one in grok_oauth_proxy/services, but for the lines that name places of this install.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import click

from grok_oauth_proxy.cli.service.asking import told_by
from grok_oauth_proxy.cli.service.files import MARK, File
from grok_oauth_proxy.cli.service.person import Person
from grok_oauth_proxy.cli.service.places import Places
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.settings import Settings

SERVICE: Final = "grok-oauth-proxy.service"
SOCKET: Final = "grok-oauth-proxy.socket"
_SYSTEM_UNITS: Final = Path("/etc/systemd/system")
_BOOTED: Final = Path("/run/systemd/system")
"""There when systemd runs as process 1 (sd_booted(3))."""
_LINGERING: Final = Path("/var/lib/systemd/linger")
_STATE: Final = re.compile(r"(#.*\n)*StateDirectory=.*\nStateDirectoryMode=.*\n")
_SHOWN: Final = (
    "LoadState,ActiveState,SubState,UnitFileState,MainPID,NRestarts,Result,ExecMainStatus,ExecStart,"
    "ActiveEnterTimestamp"
)


@dataclass(frozen=True, slots=True)
class Systemd:
    """`for_system`: a unit of the system that runs as `person`, else one of their own manager."""

    person: Person
    for_system: bool = False

    @property
    def name(self) -> str:
        return "systemd" if self.for_system else "systemd --user"

    @property
    def service_file(self) -> Path:
        return self._folder / SERVICE

    @property
    def socket_file(self) -> Path:
        return self._folder / SOCKET

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that an install may write."""
        return (self.service_file, self.socket_file)

    @property
    def _folder(self) -> Path:
        return _SYSTEM_UNITS if self.for_system else self.person.home / ".config/systemd/user"

    def files(self, places: Places, settings: Settings, *, socket: bool) -> list[File]:
        """What to write. Raises `ProxyError` or `click.UsageError`."""
        values = {
            "ExecStart": " ".join(map(_quoted, [*places.program, "serve"])),
            "ReadWritePaths": " ".join(_quoted(f"-{path}") for path in places.writable),
        }
        if self.for_system:
            values["WantedBy"] = "multi-user.target"
        text = _rendered(SERVICE, values)
        if self.for_system:
            # Stopped before the network goes, so that a refresh in flight gets its answer.
            text = text.replace("[Unit]\n", "[Unit]\nAfter=network.target\n", 1)
            text = text.replace("[Service]\n", f"[Service]\nUser={self.person.name}\n", 1)
            text = _STATE.sub("", text)
        found = [File(self.service_file, self._marked(SERVICE, text))]
        if socket:
            streams = "\nListenStream=".join(map(_specifiers_off, _streams(settings)))
            text = _rendered(SOCKET, {"ListenStream": streams})
            if self.for_system:
                text = text.replace("[Socket]\n", f"[Socket]\nSocketUser={self.person.name}\n", 1)
            found.append(File(self.socket_file, self._marked(SOCKET, text)))
        return found

    def _marked(self, unit: str, text: str) -> str:
        body = text[text.index("[Unit]") :]
        return f"# {MARK}{self._line('edit', unit)}\n\n{body}"

    def start(self, *, socket: bool) -> list[list[str]]:
        """The commands after the files are written; safe to run again."""
        units = [SOCKET, SERVICE] if socket else [SERVICE]
        commands = [self._command("daemon-reload"), self._command("enable", *units)]
        if socket:
            # A service that has opened the port itself lets go of it.
            commands += [self._command("stop", SERVICE), self._command("restart", SOCKET)]
        return [*commands, self._command("restart", SERVICE)]

    @property
    def start_line(self) -> str:
        """What a person types to start it."""
        if self.socket_file.exists():
            return self._line("start", SOCKET, SERVICE)
        return self._line("restart", SERVICE)

    def stop(self) -> list[list[str]]:
        """The commands before the files are removed."""
        units = [path.name for path in reversed(self.paths) if path.exists()]
        return [self._command("disable", "--now", *units)]

    def forget(self) -> list[list[str]]:
        """The commands after the files are removed."""
        return [self._command("daemon-reload")]

    def linger(self) -> list[str] | None:
        """What lets a user's service run while they are not logged in; None where it does already."""
        return None if self.starts_with_machine() else ["loginctl", "--no-ask-password", "enable-linger"]

    def starts_with_machine(self) -> bool:
        """Whether it starts with the machine once it is enabled, else only when its user logs in."""
        return self.for_system or (_LINGERING / self.person.name).exists()

    def log_command(self, lines: int, *, follow: bool) -> list[str]:
        scope = [] if self.for_system else ["--user"]
        return ["journalctl", *scope, "-u", SERVICE, "-n", str(lines), *(["-f"] if follow else [])]

    def holds_port(self) -> bool:
        """Whether it listens for the proxy, and starts it when somebody connects."""
        return (self._ask("is-active", SOCKET) or "").strip() == "active"

    def view(self) -> dict[str, str] | None:
        """Properties of the unit (systemctl(1)); None where this systemd does not answer."""
        told = self._ask("show", SERVICE, "--property", _SHOWN)
        lines = told.splitlines() if told else []
        return dict(line.split("=", 1) for line in lines if "=" in line) or None

    def require(self) -> None:
        """Raises `ProxyError` where there is no such systemd."""
        if self._ask("show", "--property", "Version"):
            return
        if shutil.which("systemctl") is None or not _BOOTED.exists():
            raise ProxyError(
                "systemd does not run here (a container, or WSL without it). Let what starts your programs "
                "run `grok-oauth-proxy serve`; services/README.md has a container file.",
                code="no_manager",
            )
        raise ProxyError(
            f"systemd runs here, but not for {self.person.name}. Log in as that user by ssh or on the "
            "console, not by su; or install with --system.",
            code="no_manager",
        )

    def _ask(self, *arguments: str) -> str | None:
        return told_by(self._command(*arguments))

    def _command(self, *arguments: str) -> list[str]:
        return ["systemctl", *([] if self.for_system else ["--user"]), *arguments]

    def _line(self, *arguments: str) -> str:
        return ("sudo " if self.for_system else "") + " ".join(self._command(*arguments))


def _rendered(unit: str, values: Mapping[str, str]) -> str:
    """The unit of the package with these keys' values; each of them stands in it once."""
    left = dict(values)
    lines = []
    for line in (files("grok_oauth_proxy") / "services" / unit).read_text(encoding="utf-8").splitlines():
        key = line.partition("=")[0]
        lines.append(f"{key}={left.pop(key)}" if key in left else line)
    assert not left, left  # noqa: S101 - the package's own file
    return "\n".join(lines) + "\n"


def _streams(settings: Settings) -> list[str]:
    """The addresses of the settings as systemd.socket(5) writes them."""
    found = []
    if settings.proxy_tcp:
        if settings.proxy_port == 0:
            raise click.UsageError("--socket needs a port that is known: set PROXY_PORT to one.")
        try:
            host = ip_address("127.0.0.1" if settings.proxy_host == "localhost" else settings.proxy_host)
        except ValueError:
            raise click.UsageError("--socket needs PROXY_HOST as an IP address, not as a name.") from None
        found.append(
            f"[{host}]:{settings.proxy_port}" if host.version == 6 else f"{host}:{settings.proxy_port}"
        )
    if settings.proxy_uds:
        path = str(settings.proxy_uds.absolute())
        if path.endswith("\\"):  # the next line would belong to it (systemd.syntax(7))
            raise click.UsageError("--socket needs a PROXY_UDS that does not end with a backslash.")
        found.append(path)
    return found


def _specifiers_off(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """One word of a command line or a list of paths (systemd.service(5), systemd.syntax(7))."""
    text = _specifiers_off(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if any(character in text for character in " '\";\\") else text
