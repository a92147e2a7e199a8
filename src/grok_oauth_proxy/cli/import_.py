"""`grok-oauth-proxy import`: see moving/, which the stand-alone script runs as well."""

from __future__ import annotations

import sys

import click

from grok_oauth_proxy.cli.export import PASSED_ON


@click.command("import", context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def import_(arguments: tuple[str, ...]) -> None:
    """Take over a login from another machine."""
    from grok_oauth_proxy.moving.commands import run_import

    sys.exit(run_import(("grok-oauth-proxy", "import"), arguments))
