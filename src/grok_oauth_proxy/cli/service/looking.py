"""What the service manager says of the service, and its log."""

from __future__ import annotations

import os
import subprocess

from grok_oauth_proxy.cli.service.launchd import Launchd
from grok_oauth_proxy.cli.service.managers import Manager
from grok_oauth_proxy.cli.terminal import plain
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.moving.surroundings import service_environment

_PATIENCE = 5.0
_LAST = 4


def is_active(manager: Manager) -> bool:
    """Whether the manager runs it, or is about to."""
    view = manager.view() or {}
    return view.get("ActiveState") in ("active", "activating", "reloading") or "pid" in view


def sentence(manager: Manager) -> str:
    """How the service is, in a line."""
    view = manager.view()
    if view is None:
        return f"{manager.name}: it does not answer, or does not know the service."
    told = _launchd(view) if isinstance(manager, Launchd) else _systemd(view)
    return plain(f"{manager.name}: {told}.")


def _systemd(view: dict[str, str]) -> str:
    state = f"{view.get('ActiveState', 'unknown')} ({view.get('SubState', 'unknown')})"
    parts = [state]
    if view.get("ActiveState") == "active":
        parts = [f"{state} since {view.get('ActiveEnterTimestamp')}", f"process {view.get('MainPID')}"]
    elif view.get("ActiveState") == "failed":
        parts.append(f"{view.get('Result')}, exit code {view.get('ExecMainStatus')}")
    starts = view.get("UnitFileState") == "enabled"
    parts.append("starts by itself" if starts else f"does not start by itself ({view.get('UnitFileState')})")
    if view.get("NRestarts", "0") != "0":
        parts.append(f"started anew {view['NRestarts']} times")
    return ", ".join(parts)


def _launchd(view: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in view.items()) or "loaded"


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
    try:
        told = subprocess.run(  # noqa: S603 - the system's own tools
            command,
            env=service_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [plain(line) for line in told.stdout.decode("utf-8", "replace").splitlines()]
