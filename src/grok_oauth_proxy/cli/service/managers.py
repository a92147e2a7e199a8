"""Which service manager this machine has, and with which one the proxy is installed."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Literal

import click

from grok_oauth_proxy.cli.service.files import is_ours
from grok_oauth_proxy.cli.service.launchd import Launchd
from grok_oauth_proxy.cli.service.person import Person, myself
from grok_oauth_proxy.cli.service.places import command_line
from grok_oauth_proxy.cli.service.systemd import Systemd
from grok_oauth_proxy.errors import ProxyError

Manager = Systemd | Launchd
Platform = Literal["systemd", "launchd"]


def this_platform() -> Platform:
    return "launchd" if sys.platform == "darwin" else "systemd"


def manager_of(platform: Platform, person: Person, *, for_system: bool) -> Manager:
    """Raises `click.UsageError` for what macOS does not have here."""
    if platform == "systemd":
        return Systemd(person, for_system)
    if for_system:
        raise click.UsageError("--system is for systemd. Leave it out here.")
    return Launchd(person)


def installed() -> Manager | None:
    """The manager that has a service file of ours; the user's own first. Raises `ProxyError`."""
    me = myself()
    for manager in (Systemd(me), Launchd(me), Systemd(me, for_system=True)):
        if any(is_ours(path) for path in manager.paths):
            return manager
    return None


def at_hand() -> Manager:
    """The manager whose view of the service counts, installed by us or by hand or not at all."""
    me = myself()
    if this_platform() == "launchd":
        return Launchd(me)
    own, of_system = Systemd(me), Systemd(me, for_system=True)
    return of_system if of_system.service_file.exists() and not own.service_file.exists() else own


def start_line() -> str:
    """What a person types to start the proxy: as the service where that is installed."""
    with suppress(ProxyError):  # of a file that cannot be read
        if manager := installed():
            return manager.start_line
    return "grok-oauth-proxy serve"


def refuse_twin(manager: Manager) -> None:
    """Raises `ProxyError` where the other systemd, the user's or the system's, has the service already."""
    if isinstance(manager, Launchd):
        return
    twin = Systemd(manager.person, for_system=not manager.for_system)
    if twin.service_file.exists():
        undo = command_line("service", "uninstall", as_root=twin.for_system)
        who = "" if twin.for_system or twin.person == myself() else f", as {twin.person.name},"
        raise ProxyError(
            f"It is installed as {twin.service_file} already, and two would fight over the port. First "
            f"run{who} `{undo}`.",
            code="installed_twice",
        )
