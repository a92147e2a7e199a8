"""Which service manager this machine has, and with which one the proxy is installed."""

from __future__ import annotations

import sys
from typing import Literal

import click

from grok_oauth_proxy.cli.service.files import is_ours
from grok_oauth_proxy.cli.service.launchd import Launchd
from grok_oauth_proxy.cli.service.person import Person, myself
from grok_oauth_proxy.cli.service.systemd import Systemd

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
