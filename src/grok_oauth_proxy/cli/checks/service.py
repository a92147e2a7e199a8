"""Checks of the running side: the proxy, its port, and the service that starts the proxy."""

from __future__ import annotations

import errno
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final

from grok_oauth_proxy import __version__
from grok_oauth_proxy.cli.checks.finding import Finding, cause_and_fix, note, ok, wrong
from grok_oauth_proxy.cli.checks.holders import port_holder
from grok_oauth_proxy.cli.running import Running, address_of, ask, find_running
from grok_oauth_proxy.cli.view import HEALTHY
from grok_oauth_proxy.settings import Settings

_UNIT: Final = "grok-oauth-proxy.service"
_SHOWN: Final = ("LoadState", "ActiveState", "UnitFileState", "ExecStart")
_PATIENCE: Final = 2.0
_GUIDE: Final = "See services/README.md."


def check_proxy(settings: Settings) -> list[Finding]:
    """Whether a proxy runs and is well; and that its port is free where none does."""
    found = find_running(settings)
    if isinstance(found, Running):
        return [_health(found), ok("port", f"{found.address} is this proxy's.")]
    if found.code == "wrong_key":
        return [wrong("proxy", *cause_and_fix(found.message)), ok("port", f"{found.address} is a proxy's.")]
    return [note("proxy", *cause_and_fix(found.message)), _port(settings)]


def _health(running: Running) -> Finding:
    report = running.report
    problem = report.get("problem")
    told = str(problem.get("message", "")) if isinstance(problem, dict) else ""
    cause, fix = cause_and_fix(told) if told else ("/health does not say why.", "")
    sentence = f"It runs and is {report['status']}"
    if report["status"] not in HEALTHY:
        return wrong("proxy", f"{sentence}. {cause}", fix or "Look at its log.")
    version = report.get("version")
    if version != __version__:
        return note("proxy", f"Version {version} runs, {__version__} is installed.", "Restart it.")
    if report["status"] == "degraded":
        return note("proxy", f"{sentence}. {cause}", fix or "`grok-oauth-proxy status` tells more.")
    return ok("proxy", f"{sentence}.")


def _port(settings: Settings) -> Finding:
    """The port is free, or whose it is."""
    host, port = settings.proxy_host, settings.proxy_port
    if not settings.proxy_tcp:
        return ok("port", "A start takes none (PROXY_TCP=false).")
    if port == 0:
        return ok("port", "A start takes any free port.")
    problem = _bind(host, port)
    if problem is None:
        return ok("port", f"Port {port} is free.")
    if problem != errno.EADDRINUSE:
        fix = "Choose another PROXY_HOST or PROXY_PORT."
        return wrong("port", f"The proxy could not listen on {host} port {port}.", fix)
    if isinstance(ask(address_of(settings), settings), Running):
        sentence = f"Another grok-oauth-proxy, with another state folder, has port {port}."
        return note("port", sentence, "Use that one, or set PROXY_PORT.")
    holder = port_holder(port) or "another program"
    fix = "End it, or set PROXY_PORT: a start would take the next free port, where clients do not look."
    return wrong("port", f"Port {port} is in use by {holder}.", fix)


def _bind(host: str, port: int) -> int | None:
    """Try to listen as the proxy does, for a moment; the number of the error."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except (OSError, UnicodeError) as error:
        return (error.errno or errno.EINVAL) if isinstance(error, OSError) else errno.EINVAL
    return None


def check_service() -> list[Finding]:
    """The systemd user unit: installed, enabled, running, and what it runs is there."""
    shown = _show()
    if shown is None:
        return [note("service", "Not applicable: there is no systemd for this user here.")]
    if shown.get("LoadState") == "not-found":
        return [note("service", "The proxy is not installed as a service.", _GUIDE)]
    if shown.get("LoadState") not in ("loaded", "masked"):
        fix = f"Look at `systemctl --user status {_UNIT}`. {_GUIDE}"
        return [wrong("service", f"The unit is not loaded ({shown.get('LoadState')}).", fix)]
    program = re.search(r"path=(\S+)", shown.get("ExecStart", ""))
    if program and not Path(program[1]).exists():
        fix = f"Correct ExecStart in the unit, or run ./install.sh in its folder. {_GUIDE}"
        return [wrong("service", f"The unit runs {program[1]}, which does not exist.", fix)]
    return [_life(shown)]


def _life(shown: dict[str, str]) -> Finding:
    active, enabled = shown.get("ActiveState", "unknown"), shown.get("UnitFileState", "unknown")
    if active == "failed":
        fix = f"Its last lines say why: journalctl --user -u {_UNIT} -n 20"
        return wrong("service", "The service has failed.", fix)
    if active != "active":
        fix = f"systemctl --user enable --now {_UNIT}"
        return note("service", f"The service is installed ({enabled}) but not running ({active}).", fix)
    if enabled != "enabled":
        sentence = f"The service runs, but does not start by itself ({enabled})."
        return note("service", sentence, f"systemctl --user enable {_UNIT}")
    return ok("service", "The service is running and starts by itself.")


def _show() -> dict[str, str] | None:
    """Properties of the unit; None where systemd does not answer for this user."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return None
    command = [systemctl, "--user", "show", _UNIT, "--property", ",".join(_SHOWN)]
    try:
        told = subprocess.run(  # noqa: S603 - the system's own systemctl
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = told.stdout.decode("utf-8", "replace").splitlines() if told.returncode == 0 else []
    shown = dict(line.split("=", 1) for line in lines if "=" in line)
    return shown or None
