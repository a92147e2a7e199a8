"""What the service manager says of the service, and its log."""

from __future__ import annotations

import os

from grok_oauth_proxy.cli.service.asking import told_by
from grok_oauth_proxy.cli.service.launchd import Launchd
from grok_oauth_proxy.cli.service.managers import Manager
from grok_oauth_proxy.cli.service.systemd import SOCKET, Systemd
from grok_oauth_proxy.cli.terminal import plain
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.moving.surroundings import service_environment

_LAST = 4
_MEANINGS = {"2": "exit code 2: a setting is wrong", "3": "exit code 3: it may not start like this"}


def is_active(manager: Manager) -> bool:
    """Whether the manager runs it, or is about to."""
    view = manager.view() or {}
    return view.get("ActiveState") in ("active", "activating", "reloading") or "pid" in view


def sentence(manager: Manager) -> str:
    """How the service is."""
    view = manager.view()
    if view is None:
        return f"{manager.name}: it does not answer, or does not know the service."
    if isinstance(manager, Launchd):
        told = ", ".join(f"{name} {value}" for name, value in view.items()) or "loaded"
    else:
        told = _systemd(manager, view)
    return plain(f"{manager.name}: {told}.")


def when_it_starts(manager: Manager) -> str:
    return "with the machine" if manager.starts_with_machine() else "when you log in"


def _systemd(manager: Systemd, view: dict[str, str]) -> str:
    state, code = view.get("ActiveState", "unknown"), view.get("ExecMainStatus")
    parts = [state]
    if state == "active":
        parts = [f"active since {view.get('ActiveEnterTimestamp')}", f"process {view.get('MainPID')}"]
    elif state == "failed":
        parts = [f"failed ({view.get('Result')}, {_MEANINGS.get(code or '', f'exit code {code}')})"]
    when = "the machine" if manager.starts_with_machine() else "your login"
    starts = view.get("UnitFileState") == "enabled"
    parts.append(
        f"starts with {when}" if starts else f"does not start by itself ({view.get('UnitFileState')})"
    )
    if view.get("NRestarts", "0") != "0":
        parts.append(f"restarts after a failure: {view['NRestarts']}")
    if manager.socket_file.exists():
        held = manager.holds_port()
        parts.append("its port is held by systemd" if held else f"{SOCKET} is stopped and holds no port")
    return ", ".join(parts)


def follow_log(manager: Manager, lines: int, *, follow: bool) -> None:
    """Become the command that prints the log. Raises `ProxyError`."""
    command = manager.log_command(lines, follow=follow)
    try:
        os.execvpe(command[0], command, service_environment())  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise ProxyError(
            f"{command[0]} cannot be run: {error.strerror}. Install it, or look where it logs to.",
            code="no_log",
        ) from None


def last_lines(manager: Manager) -> list[str]:
    """The last lines of the log, as plain text; none where it cannot be read."""
    command = manager.log_command(_LAST, follow=False)
    if command[0] == "journalctl":
        command += ["-o", "cat", "-q", "--no-pager"]
    return [plain(line) for line in (told_by(command) or "").splitlines()]
