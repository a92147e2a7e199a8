"""The life of the daemon in reading order: check, load the grant, listen, serve, drain."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import uvicorn

from grok_oauth_proxy.app import refuse_unsafe_start, running_app
from grok_oauth_proxy.errors import StartRefused
from grok_oauth_proxy.observe.log import configure_logging
from grok_oauth_proxy.server import Server, listen, url_of
from grok_oauth_proxy.settings import Settings


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ProxyError` when it may not or cannot start."""
    os.umask(0o077)
    configure_logging(settings.log_level)
    refuse_unsafe_start(settings)
    loop_factory = uvicorn.Config(app=_no_app, log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    async with running_app(settings) as (app, observer):
        with (
            listen(settings.proxy_host, settings.proxy_port) as sock,
            _address_kept(settings.grok_proxy_auth_state.parent / "address", url_of(sock)),
        ):
            await Server(app, observer, on_ready=lambda: _greet(settings, sock)).serve(sockets=[sock])


def _greet(settings: Settings, sock: socket.socket) -> None:
    wanted, url = settings.proxy_port, url_of(sock)
    if wanted and sock.getsockname()[1] != wanted:
        click.echo(f"Port {wanted} is in use by another program, so another one was taken.", err=True)
    click.echo(f"grok-oauth-proxy is ready: {url}/v1", err=True)


@contextmanager
def _address_kept(path: Path, url: str) -> Iterator[None]:
    """Keep the address where other commands find it, for as long as this process serves it."""
    try:
        path.write_text(url + "\n")
    except OSError as error:
        raise StartRefused(
            f"{path} cannot be written: {error.strerror}. Make its folder writable.", code="state_unusable"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            if path.read_text() == url + "\n":
                path.unlink()


async def _no_app(*_: object) -> None:
    """uvicorn wants an application before it tells which event loop it would use."""
