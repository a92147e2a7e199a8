"""`grok-oauth-proxy serve`: the daemon."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option(
    "--worker", type=int, multiple=True, hidden=True, help="Serve this inherited socket, for PROXY_WORKERS."
)
def serve(worker: tuple[int, ...]) -> None:
    """Serve the Grok API on http://127.0.0.1:9996/v1 with your Grok login.

    All settings come from the environment; the README lists them.
    """
    # Imported here, so that `--help` and other commands do not wait for the server's libraries, and after the
    # settings are read: a wrong one is told at once.
    from grok_oauth_proxy.settings import load_settings

    handed_over = None
    if worker:
        from grok_oauth_proxy.workers import settings_handed_over

        handed_over = settings_handed_over()
    settings = load_settings(handed_over)
    from grok_oauth_proxy import daemon

    sys.exit(daemon.run(settings, workers_sockets=worker))
