"""`grok-oauth-proxy push`: see moving/, which the stand-alone script runs as well."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from grok_oauth_proxy.cli.export import PASSED_ON


@click.command(context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def push(arguments: tuple[str, ...]) -> None:
    """Bring the login to a server over ssh."""
    from grok_oauth_proxy.moving.commands import run_push

    started = Path(sys.argv[0]).absolute()
    # It may not be on the PATH of whoever runs the printed command later.
    installed = started.name == "grok-oauth-proxy"
    program = (str(started),) if installed else (sys.executable, "-m", "grok_oauth_proxy")
    sys.exit(run_push((*program, "push"), arguments))
