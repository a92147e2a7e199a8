"""`grok-oauth-proxy config`: a snippet that makes a client use the proxy."""

from __future__ import annotations

import click


@click.command(short_help="Print a snippet for a client.")
@click.argument("client", type=click.Choice(["litellm", "hermes", "openai", "curl"]))
def config(client: str) -> None:
    """Print a working snippet for CLIENT, with this proxy's address and key.

    \b
      litellm  the config.yaml of its proxy
      hermes   the part of ~/.hermes/config.yaml
      openai   a Python program
      curl     a command for the shell
    """
    from grok_oauth_proxy.cli.clients import SNIPPETS
    from grok_oauth_proxy.cli.endpoint import find_endpoint
    from grok_oauth_proxy.settings import load_settings

    click.echo(SNIPPETS[client](find_endpoint(load_settings())), nl=False)
