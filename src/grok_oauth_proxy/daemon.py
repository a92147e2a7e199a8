"""The life of the daemon in reading order: check, load the grant, listen, serve, drain."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import click
import uvicorn

from grok_oauth_proxy.app import prepare_state, refuse_unsafe_start, running_app
from grok_oauth_proxy.errors import ConfigurationError, StartRefused
from grok_oauth_proxy.observe.log import configure_logging, log_event
from grok_oauth_proxy.server import Server, listen, url_of
from grok_oauth_proxy.settings import Settings
from grok_oauth_proxy.workers import READY, Workers, metrics_folder


def run(settings: Settings, *, worker: int | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Raises `ProxyError` when it may not or cannot start.

    `worker`: the descriptor of the socket to serve as one of several processes.
    """
    os.umask(0o077)
    _occupy_standard_streams()
    configure_logging(settings.log_level)
    refuse_unsafe_start(settings)
    if settings.proxy_workers > 1 and worker is None:
        return asyncio.run(_supervise(settings))
    loop_factory = uvicorn.Config(app=_no_app, log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(settings) if worker is None else _work(settings, worker))
    return 0


def _occupy_standard_streams() -> None:
    """Where one was closed, the next file or socket would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


async def _serve(settings: Settings) -> None:
    async with running_app(settings) as (app, observer):
        with _listening(settings) as sock:
            await Server(app, observer, on_ready=lambda: _greet(settings, sock)).serve(sockets=[sock])


async def _supervise(settings: Settings) -> int:
    prepare_state(settings, log_event)
    with _listening(settings) as sock, metrics_folder() as folder:
        greet = partial(_greet, settings, sock)
        return await Workers(settings.proxy_workers, sock, folder, on_ready=greet).run()


async def _work(settings: Settings, descriptor: int) -> None:
    with _inherited(descriptor) as sock:
        async with running_app(settings) as (app, observer):
            server = Server(app, observer, on_ready=_tell_ready)
            loop, parent = asyncio.get_running_loop(), sys.stdin.fileno()

            def orphaned() -> None:
                """Nobody writes to it: it can be read once the process that started this one is gone."""
                loop.remove_reader(parent)
                server.should_exit = True

            loop.add_reader(parent, orphaned)
            await server.serve(sockets=[sock])


def _tell_ready() -> None:
    with suppress(BrokenPipeError):  # the parent was killed, which is noticed in a moment
        os.write(sys.stdout.fileno(), READY)


def _inherited(descriptor: int) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except (OSError, ValueError):  # the second from a negative number
        raise ConfigurationError(
            f"--worker {descriptor} names no socket. Set PROXY_WORKERS to have several processes."
        ) from None


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    with (
        listen(settings.proxy_host, settings.proxy_port) as sock,
        _address_kept(settings.grok_proxy_auth_state.parent / "address", url_of(sock)),
    ):
        yield sock


def _greet(settings: Settings, sock: socket.socket) -> None:
    wanted, url = settings.proxy_port, url_of(sock)
    with suppress(OSError):  # nobody reads it
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
