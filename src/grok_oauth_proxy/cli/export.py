"""`grok-oauth-proxy export`: see moving/, which the stand-alone script runs as well."""

from __future__ import annotations

import sys

import click

PASSED_ON = {"ignore_unknown_options": True, "help_option_names": []}
"""moving/commands.py defines the options, also for scripts that have no click."""


@click.command(context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def export(arguments: tuple[str, ...]) -> None:
    """Print the login, for another machine."""
    from grok_oauth_proxy.moving.commands import run_export

    sys.exit(run_export(("grok-oauth-proxy", "export"), arguments))
