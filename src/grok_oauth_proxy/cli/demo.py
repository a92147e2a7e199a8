"""`grok-oauth-proxy demo`: a day with the proxy in a few seconds, without a Grok account."""

from __future__ import annotations

import click


@click.command()
@click.option("--keep", is_flag=True, help="Leave both running afterwards and show commands to try.")
def demo(keep: bool) -> None:
    """Try the proxy against a simulated xAI. Needs no account and touches none of your files."""
    from grok_oauth_proxy.cli import demo_day

    demo_day.play(keep=keep)
