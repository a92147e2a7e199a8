"""`grok-oauth-proxy login`: a login of the proxy's own, without Hermes."""

from __future__ import annotations

import signal
import sys

import click


@click.command()
@click.option("--browser", is_flag=True, help="Come back to a page on this machine instead of using a code.")
def login(browser: bool) -> None:
    """Sign in to Grok: the proxy gets a login of its own, which nobody else refreshes.

    It shows a page and a code for any browser on any device, so that it works over ssh and in containers.
    Ctrl-C leaves nothing behind.

    \b
    Exit codes: 0 signed in
                1 refused, expired, or the server could not be asked
                2 a setting is wrong, or no OAuth client id is known
                3 login.json cannot be read or written
                130 given up
    """
    # Imported here, so that `--help` and other commands do not wait for these.
    import asyncio

    from grok_oauth_proxy.cli import signing_in
    from grok_oauth_proxy.settings import load_settings

    # A shell starts its background jobs with SIGINT ignored; Ctrl-C, or a kill -INT, gives up all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    course = signing_in.SignIn(load_settings())
    try:
        asyncio.run(course.run(signing_in.by_browser if browser else signing_in.by_code))
    except (KeyboardInterrupt, asyncio.CancelledError):
        if not course.saved:
            click.echo("\nGiven up; nothing was changed.", err=True)
            sys.exit(130)
    course.tell()
