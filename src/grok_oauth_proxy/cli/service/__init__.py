"""`grok-oauth-proxy service`: the proxy as a service of systemd or launchd."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from grok_oauth_proxy.cli.service.managers import Manager


@click.group(short_help="Run it as a service: install, uninstall, status, logs.")
def service() -> None:
    """Run the proxy as a service of systemd (Linux) or launchd (macOS)."""


@service.command(short_help="Install, enable and start it. Safe to run again.")
@click.option(
    "--system", is_flag=True, help="As a unit of the system, behind sudo; it runs as you all the same."
)
@click.option("--user", metavar="NAME", help="Whom the unit of the system runs as, if not who called sudo.")
@click.option("--socket", is_flag=True, help="Let systemd hold the port: a restart refuses no connection.")
@click.option("--dry-run", is_flag=True, help="Print the files and the commands, and do nothing.")
@click.option(
    "--platform",
    type=click.Choice(["systemd", "launchd"]),
    help="For this service manager, not for the one of this machine.",
)
def install(system: bool, user: str | None, socket: bool, dry_run: bool, platform: str | None) -> None:
    """Write the unit or agent for this install, enable it, start it, and say how to undo that.

    Your settings count as they are now: their folders are what the service may write to.
    """
    from grok_oauth_proxy.cli.service.installing import install
    from grok_oauth_proxy.cli.service.managers import manager_of, this_platform
    from grok_oauth_proxy.cli.service.person import behind_sudo, myself, refuse_sudo

    if user and not system:
        raise click.UsageError("--user goes with --system.")
    if system:
        person = behind_sudo(user, dry_run=dry_run)
    else:
        refuse_sudo()
        person = myself()
    chosen = this_platform() if platform is None else ("systemd" if platform == "systemd" else "launchd")
    install(manager_of(chosen, person, for_system=system), socket=socket, dry_run=dry_run)


@service.command(short_help="Stop, disable and remove what install wrote.")
def uninstall() -> None:
    """Stop, disable and remove what `service install` wrote. Login and settings stay."""
    from grok_oauth_proxy.cli.service.installing import uninstall

    uninstall()


@service.command(short_help="Show what the service manager says, and how the proxy is.")
def status() -> None:
    """Show what the service manager says, and what `grok-oauth-proxy status` does.

    Exit code: 0 when the service runs and the proxy's status is ok or degraded, else 1.
    """
    import time

    from grok_oauth_proxy.cli.panel import panel
    from grok_oauth_proxy.cli.service.looking import is_active, sentence
    from grok_oauth_proxy.cli.status import look
    from grok_oauth_proxy.cli.terminal import screen
    from grok_oauth_proxy.settings import load_settings

    manager = _installed()
    active = is_active(manager)
    click.echo(sentence(manager))
    view = look(load_settings())
    screen().print(panel(view, time.time()))
    if view.running and not active:
        click.echo(f"If you started that one yourself, end it, then run `{manager.start_line}`.")
    sys.exit(0 if view.healthy and active else 1)


@service.command(short_help="Show its log.")
@click.option("-f", "--follow", is_flag=True, help="Stay, and show what is added. Ctrl-C ends it.")
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(min=0), help="How many.")
def logs(follow: bool, lines: int) -> None:
    """Show the last lines of the service's log."""
    from grok_oauth_proxy.cli.service.looking import follow_log

    follow_log(_installed(), lines, follow=follow)


def _installed() -> Manager:
    from grok_oauth_proxy.cli.service.managers import installed
    from grok_oauth_proxy.errors import ProxyError

    manager = installed()
    if manager is None:
        raise ProxyError(
            "No service is installed here. Install it with `grok-oauth-proxy service install`.",
            code="no_service",
        )
    return manager
