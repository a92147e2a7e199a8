"""The command line: one file a command, one line per error, exit codes as a contract.

0 it worked · 1 it failed · 2 a setting or argument is wrong · 3 the daemon may not start like this
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from grok_oauth_proxy import __version__
from grok_oauth_proxy.cli.demo import demo
from grok_oauth_proxy.cli.serve import serve
from grok_oauth_proxy.errors import ProxyError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="grok-oauth-proxy")
def commands() -> None:
    """A local OpenAI-compatible endpoint for your Grok (SuperGrok) login."""


commands.add_command(serve)
commands.add_command(demo)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit. What a user can cause ends in one line, never in a traceback."""
    try:
        commands.main(args=arguments, prog_name="grok-oauth-proxy")
    except ProxyError as error:
        click.echo(f"grok-oauth-proxy: {error.message}", err=True)
        sys.exit(error.exit_code)
