"""`grok-oauth-proxy serve`: the daemon."""

from __future__ import annotations

import click


@click.command()
def serve() -> None:
    """Serve the Grok API on http://127.0.0.1:9996/v1 with your Hermes login.

    All settings come from the environment; the README lists them.
    """
    # Imported here, so that `--help` and other commands do not wait for the server's libraries.
    from grok_oauth_proxy import daemon
    from grok_oauth_proxy.settings import load_settings

    daemon.run(load_settings())
