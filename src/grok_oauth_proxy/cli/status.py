"""`grok-oauth-proxy status`: is it running, whose login does it use, and how is that."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from rich.console import Console

    from grok_oauth_proxy.cli.view import View
    from grok_oauth_proxy.settings import Settings

_EVERY: Final = 1.0
"""Seconds between two looks."""


@click.command(short_help="Show whether it runs, and how its login is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
@click.option("--watch", is_flag=True, help="Stay, and look again each second. Ctrl-C ends it.")
def status(as_json: bool, watch: bool) -> None:
    """Show the running proxy, its login, and what the API refused last.

    When none runs, the login a start would use is read from the files; nothing is written or refreshed.

    \b
    The JSON object has these keys, null where nothing is known:
      running, status, message, address, base_url, version,
      credential_source, owner, account {tier, principal_type},
      token_expires_at, token_seconds_to_expiry,
      last_refresh {at, status, error_class, successes, failures},
      last_rejection {kind, at, meaning, remedy},
      rate_limits {limit_requests, remaining_requests, limit_tokens,
                   remaining_tokens, at},
      api_key_fallback {requests}, problem {code, message}, unknown [...]

    Exit code: 0 when it runs and its status is ok or degraded, else 1.
    """
    from grok_oauth_proxy.cli.panel import panel
    from grok_oauth_proxy.cli.terminal import screen
    from grok_oauth_proxy.settings import load_settings

    if watch and as_json:
        raise click.UsageError("--watch draws on the terminal: call `status --json` again and again instead.")
    console = screen()
    if watch and not console.is_terminal:
        raise click.UsageError("--watch needs a terminal. Scripts call `status --json`.")
    settings = load_settings()
    if watch:
        _watch(settings, console)
        sys.exit(0)
    view = look(settings)
    if as_json:
        click.echo(json.dumps(view.as_json(), indent=2))
    else:
        console.print(panel(view, time.time()))
    sys.exit(0 if view.healthy else 1)


def look(settings: Settings) -> View:
    """Ask the running proxy, or read the files when none can be asked."""
    from grok_oauth_proxy.cli.logins import read_login
    from grok_oauth_proxy.cli.running import Running, find_running
    from grok_oauth_proxy.cli.view import view_of_files, view_of_running

    found = find_running(settings)
    if isinstance(found, Running):
        return view_of_running(found)
    return view_of_files(found, read_login(settings), time.time())


def _watch(settings: Settings, console: Console) -> None:
    from rich.live import Live

    from grok_oauth_proxy.cli.panel import panel

    # Whatever ends it, the cursor comes back.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(panel(look(settings), time.time()), refresh=True)
                time.sleep(_EVERY)
    except KeyboardInterrupt:
        return
