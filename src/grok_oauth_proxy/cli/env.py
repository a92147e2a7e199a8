"""`grok-oauth-proxy env`: the variables that lead OpenAI clients to the proxy."""

from __future__ import annotations

import click


@click.command(short_help="Print variables that lead OpenAI clients here.")
@click.option(
    "--shell",
    type=click.Choice(["sh", "bash", "zsh", "fish", "powershell"]),
    default="sh",
    show_default=True,
    help="The language to print them in.",
)
def env(shell: str) -> None:
    """Print OPENAI_BASE_URL, OPENAI_API_BASE and OPENAI_API_KEY for your shell.

    \b
      sh, bash, zsh: eval "$(grok-oauth-proxy env)"
      fish:          grok-oauth-proxy env --shell fish | source
      powershell:    grok-oauth-proxy env --shell powershell | Out-String | Invoke-Expression

    The address is that of the running proxy, else the configured one. The key is PROXY_API_KEY, if it is set;
    where keys were made with `grok-oauth-proxy keys add` it must be, or OPENAI_API_KEY is left as it is.
    """
    from grok_oauth_proxy.cli.clients import exports
    from grok_oauth_proxy.cli.endpoint import find_endpoint
    from grok_oauth_proxy.settings import load_settings

    click.echo(exports(find_endpoint(load_settings()), shell), nl=False)
