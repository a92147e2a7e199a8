"""Checks of the running side: the proxy, its port, and the service that starts the proxy."""

from __future__ import annotations

import errno
import re
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Final

from grok_oauth_proxy import __version__
from grok_oauth_proxy.cli.checks.finding import Finding, cause_and_fix, note, ok, wrong
from grok_oauth_proxy.cli.checks.holders import port_holder
from grok_oauth_proxy.cli.running import Running, address_of, ask, ask_deep, find_running
from grok_oauth_proxy.cli.service.launchd import Launchd
from grok_oauth_proxy.cli.service.managers import at_hand
from grok_oauth_proxy.cli.service.systemd import SERVICE
from grok_oauth_proxy.cli.view import HEALTHY
from grok_oauth_proxy.settings import Settings

_INSTALL: Final = "Run `grok-oauth-proxy service install`."
_LOGS: Final = "Run `grok-oauth-proxy service logs`."


def check_proxy(settings: Settings) -> list[Finding]:
    """Whether a proxy runs and is well; and that its port is free where none does."""
    found = find_running(settings)
    if isinstance(found, Running):
        return [_health(found), ok("port", f"{found.address} is this proxy's.")]
    if found.code == "wrong_key":
        return [wrong("proxy", *cause_and_fix(found.message)), ok("port", f"{found.address} is a proxy's.")]
    manager = at_hand()
    if not isinstance(manager, Launchd) and manager.holds_port():  # to ask there would start it
        if found.code == "not_running":
            return [note("proxy", "systemd holds its port, and starts it when the next client comes.")]
        return [wrong("proxy", *cause_and_fix(found.message))]
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


def check_deep(settings: Settings) -> list[Finding]:
    """Whether the API takes what the running proxy sends, which has another environment than this command."""
    found = find_running(settings)
    if not isinstance(found, Running):
        return [note("proxy-api", "No proxy runs here that could ask the API.")]
    report = ask_deep(found, settings)
    if report is None:
        return [wrong("proxy-api", "The proxy gives no answer when it is to ask the API.", _LOGS)]
    upstream = report.get("upstream")
    if not isinstance(upstream, dict):
        return [note("proxy-api", "The proxy does not tell what the API said.")]
    if upstream.get("status") == HTTPStatus.OK:
        return [ok("proxy-api", "The API takes the token of the running proxy.")]
    told = upstream.get("status") or upstream.get("error")
    return [wrong("proxy-api", f"The running proxy's question to the API ends with {told}.", _LOGS)]


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
        sentence = f"Another grok-oauth-proxy, not the one noted in this state folder, has port {port}."
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
    """The service: installed, enabled, running, and what it runs is there."""
    manager = at_hand()
    shown = manager.view()
    if isinstance(manager, Launchd):
        return [_agent(manager, shown)]
    if shown is None:
        return [note("service", "Not applicable: there is no systemd for this user here.")]
    systemctl = "sudo systemctl" if manager.for_system else "systemctl --user"
    if shown.get("LoadState") == "not-found":
        return [note("service", "The proxy is not installed as a service.", _INSTALL)]
    if shown.get("LoadState") not in ("loaded", "masked"):
        fix = f"Look at `{systemctl} status {SERVICE}`, or install it anew. {_INSTALL}"
        return [wrong("service", f"The unit is not loaded ({shown.get('LoadState')}).", fix)]
    program = re.search(r"path=(.+?) ; argv\[\]=", shown.get("ExecStart", ""))
    if program and not Path(program[1]).exists():
        fix = f"Run ./install.sh in its folder, or install it anew. {_INSTALL}"
        return [wrong("service", f"The unit runs {program[1]}, which does not exist.", fix)]
    return [_life(shown, systemctl)]


def _life(shown: dict[str, str], systemctl: str) -> Finding:
    active, enabled = shown.get("ActiveState", "unknown"), shown.get("UnitFileState", "unknown")
    if active == "failed":
        return wrong("service", "The service has failed.", f"Its last lines say why. {_LOGS}")
    if active != "active":
        fix = f"Run `{systemctl} enable --now {SERVICE}`."
        return note("service", f"The service is installed ({enabled}) but not running ({active}).", fix)
    if enabled != "enabled":
        sentence = f"The service runs, but does not start by itself ({enabled})."
        return note("service", sentence, f"Run `{systemctl} enable {SERVICE}`.")
    return ok("service", "The service is running and starts by itself.")


def _agent(manager: Launchd, shown: dict[str, str] | None) -> Finding:
    if not manager.service_file.exists():
        return note("service", "The proxy is not installed as a service.", _INSTALL)
    if shown is None:
        return note("service", "The service is installed but not loaded.", _INSTALL)
    if shown.get("state") != "running":
        told = f"The service does not run (last exit code {shown.get('last exit code', 'unknown')})."
        return wrong("service", told, f"Its last lines say why. {_LOGS}")
    return ok("service", "The service is running and starts by itself.")
