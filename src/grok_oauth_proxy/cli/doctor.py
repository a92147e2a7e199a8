"""`grok-oauth-proxy doctor`: what is in order, what is not, and the fix for it."""

from __future__ import annotations

import json
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from rich.table import Table

    from grok_oauth_proxy.cli.checks.finding import Check, Finding
    from grok_oauth_proxy.settings import Settings

_PATIENCE: Final = 8.0
"""Seconds for all checks, which run side by side."""


@click.command(short_help="Find what is wrong, and the fix for it.")
@click.option("--online", is_flag=True, help="Also ask the API with the access token; nothing is refreshed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def doctor(online: bool, as_json: bool) -> None:
    """Check everything the proxy needs, and say how to fix what is wrong.

    Without --online no token leaves this machine; that both servers can be reached is tried without one.

    \b
    The JSON object: {"wrong": how many, "checks": [{"name", "state", "sentence", "fix"}]}
    with the state ok, wrong, or note (not applicable, or only worth knowing).

    Exit code: 1 when something is wrong, else 0.
    """
    from grok_oauth_proxy.cli.terminal import screen

    findings = run(checks(online=online))
    count = sum(finding.state == "wrong" for finding in findings)
    if as_json:
        click.echo(
            json.dumps({"wrong": count, "checks": [_as_json(finding) for finding in findings]}, indent=2)
        )
    else:
        console = screen()
        console.print(_table(findings))
        told = (
            "Nothing is wrong." if not count else f"{count} of {len(findings)} checks found something wrong."
        )
        console.print(f"\n{told}", style="bold")
    sys.exit(1 if count else 0)


def checks(*, online: bool) -> list[tuple[str, Check]]:
    """Every check with its name, in the order they are shown."""
    from grok_oauth_proxy.cli.checks.finding import note, of_error, ok
    from grok_oauth_proxy.cli.checks.installation import check_installation, check_python
    from grok_oauth_proxy.cli.checks.service import check_service
    from grok_oauth_proxy.errors import ConfigurationError
    from grok_oauth_proxy.settings import load_settings

    first: list[tuple[str, Check]] = [("python", check_python), ("install", check_installation)]
    last: list[tuple[str, Check]] = [("service", check_service)]
    try:
        settings = load_settings()
    except ConfigurationError as error:
        bad = of_error("settings", error)
        rest = note("others", "All other checks wait until that setting is right.")
        return [*first, ("settings", lambda: [bad]), *last, ("others", lambda: [rest])]
    changed = ", ".join(sorted(name.upper() for name in settings.model_fields_set)) or "none but the defaults"
    good = ok("settings", f"The settings are right: {changed}.")
    return [*first, ("settings", lambda: [good]), *_checks_with(settings, online=online), *last]


def _checks_with(settings: Settings, *, online: bool) -> list[tuple[str, Check]]:
    from grok_oauth_proxy.cli.checks import grant, installation, network, service, stores
    from grok_oauth_proxy.cli.logins import read_login
    from grok_oauth_proxy.clock import Clock

    clock, login = Clock(), read_login(settings)
    needs_hermes = settings.hermes_cli_required and login.source == "hermes"
    asking: list[tuple[str, Check]] = []
    if online:
        asking.append(("online", partial(network.check_online, settings, login, clock)))
        asking.append(("proxy-api", partial(service.check_deep, settings)))
    return [
        ("hermes", partial(installation.check_hermes_cli, required=needs_hermes)),
        ("hermes-store", partial(stores.check_hermes_store, settings, login)),
        ("state", partial(stores.check_own_files, settings)),
        ("keys", partial(stores.check_keys, settings)),
        ("privacy", partial(stores.check_privacy, settings)),
        ("lock", partial(stores.check_locks, settings)),
        ("grant", partial(grant.check_grant, login, clock.wall())),
        ("auth-server", partial(network.check_authorization_server, settings, clock)),
        ("api", partial(network.check_api, settings, clock)),
        *asking,
        ("proxy", partial(service.check_proxy, settings)),
    ]


def run(named: list[tuple[str, Check]]) -> list[Finding]:
    """All findings in order; a check that is not done in time, or fails itself, is a finding too."""
    from grok_oauth_proxy.cli.checks.finding import note

    done: dict[str, list[Finding]] = {}

    def work(name: str, check: Check) -> None:
        try:
            done[name] = check()
        except Exception as error:  # noqa: BLE001 - one check's bug must not hide what the others found
            fix = "This is a bug, please report it."
            done[name] = [note(name, f"This check failed itself: {type(error).__name__}.", fix)]

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in named]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = "This check did not end in time."
    return [finding for name, _ in named for finding in done.get(name) or [note(name, late)]]


def _as_json(finding: Finding) -> dict[str, str | None]:
    return {"name": finding.name, "state": finding.state, "sentence": finding.sentence, "fix": finding.fix}


_SIGNS: Final = {"ok": ("✓", "green"), "wrong": ("✗", "red"), "note": ("\N{EN DASH}", "dim")}


def _table(findings: list[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from grok_oauth_proxy.cli.terminal import plain

    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for finding in findings:
        sign, style = _SIGNS[finding.state]
        told = Text(plain(finding.sentence))
        if finding.fix and finding.state != "ok":
            told.append("\n→ " + plain(finding.fix), "bold" if finding.state == "wrong" else "")
        table.add_row(Text(sign, style), finding.name, told)
    return table
