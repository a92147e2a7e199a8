"""The life of the daemon in reading order: check, load the grant, listen, serve, drain."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import click
import uvicorn

from grok_oauth_proxy.app import prepare_state, refuse_unsafe_start, running_app
from grok_oauth_proxy.certificate import out_of_time, server_context
from grok_oauth_proxy.errors import ConfigurationError, StartRefused
from grok_oauth_proxy.listening import FURTHER_PORTS, UNIX, Listener, limits, listeners
from grok_oauth_proxy.observe.log import configure_logging, log_event
from grok_oauth_proxy.origins import is_loopback
from grok_oauth_proxy.server import Server
from grok_oauth_proxy.settings import Settings
from grok_oauth_proxy.systemd import Manager, inherited_sockets
from grok_oauth_proxy.workers import READY, Workers, metrics_folder


def run(settings: Settings, *, workers_sockets: Sequence[int] = ()) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Raises `ProxyError` when it may not or cannot start.

    `workers_sockets`: the descriptors of the sockets to serve as one of several processes.
    """
    os.umask(0o077)
    _occupy_standard_streams()
    configure_logging(settings.log_level, settings.log_format)
    manager, opened = Manager(), inherited_sockets()
    served = [_inherited(descriptor) for descriptor in workers_sockets]
    settings = _as_opened(settings, served or opened)
    refuse_unsafe_start(settings)
    tls = server_context(settings)
    if settings.proxy_workers > 1 and not served:
        return asyncio.run(_supervise(settings, tls, opened, manager))
    loop_factory = uvicorn.Config(app=_no_app, log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_work(settings, tls, served) if served else _serve(settings, tls, opened, manager))
    return 0


def _as_opened(settings: Settings, opened: Sequence[socket.socket]) -> Settings:
    """The settings with the host of the sockets: one open to others wants a key, whoever opened it."""
    hosts = [sock.getsockname()[0] for sock in opened if sock.family != socket.AF_UNIX]
    exposed = [host for host in hosts if not is_loopback(host)]
    if not exposed or not is_loopback(settings.proxy_host):
        return settings
    return settings.model_copy(update={"proxy_host": exposed[0]})


def _occupy_standard_streams() -> None:
    """Where one was closed, the next file or socket would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


async def _serve(
    settings: Settings, tls: ssl.SSLContext | None, opened: Sequence[socket.socket], manager: Manager
) -> None:
    async with running_app(settings) as (app, observer), _reassured(manager):
        with _listening(settings, opened) as found:
            server = Server(
                app,
                observer,
                limits=limits(settings),
                tls=tls,
                drain=settings.proxy_drain_timeout,
                on_ready=partial(_greet, settings, tls, found, manager),
                on_end=partial(manager.tell, "STOPPING=1"),
            )
            await server.serve(sockets=[listener.socket for listener in found])


async def _supervise(
    settings: Settings, tls: ssl.SSLContext | None, opened: Sequence[socket.socket], manager: Manager
) -> int:
    prepare_state(settings, log_event)
    with _listening(settings, opened) as found, metrics_folder() as folder:
        greet = partial(_greet, settings, tls, found, manager)
        sockets = [listener.socket for listener in found]
        async with _reassured(manager):
            workers = Workers(
                settings.proxy_workers,
                sockets,
                folder,
                on_ready=greet,
                on_end=partial(manager.tell, "STOPPING=1"),
            )
            return await workers.run()


@asynccontextmanager
async def _reassured(manager: Manager) -> AsyncIterator[None]:
    """The service manager hears of this process for as long as the block lasts."""
    alive = asyncio.create_task(manager.reassure(), name="watchdog")
    try:
        yield
    finally:
        alive.cancel()


async def _work(settings: Settings, tls: ssl.SSLContext | None, sockets: list[socket.socket]) -> None:
    with ExitStack() as stack:
        for sock in sockets:
            stack.enter_context(sock)
        async with running_app(settings) as (app, observer):
            server = Server(
                app,
                observer,
                limits=limits(settings),
                tls=tls,
                drain=settings.proxy_drain_timeout,
                on_ready=_tell_ready,
                on_end=lambda: None,
            )
            loop, parent = asyncio.get_running_loop(), sys.stdin.fileno()

            def orphaned() -> None:
                """Nobody writes to it: it can be read once the process that started this one is gone."""
                loop.remove_reader(parent)
                server.should_exit = True

            loop.add_reader(parent, orphaned)
            await server.serve(sockets=sockets)


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
def _listening(settings: Settings, opened: Sequence[socket.socket]) -> Iterator[list[Listener]]:
    with (
        listeners(settings, opened) as found,
        _address_kept(settings.grok_proxy_auth_state.parent / "address", found[0].address),
    ):
        yield found


def _greet(
    settings: Settings, tls: ssl.SSLContext | None, found: Sequence[Listener], manager: Manager
) -> None:
    for warning in _warnings(settings, tls, found):
        with suppress(OSError):
            click.echo(f"Warning: {warning}", err=True)
    for listener in found:
        with suppress(OSError):  # nobody reads it
            if listener.address.startswith(UNIX):
                path = listener.address.removeprefix(UNIX)
                click.echo(f"grok-oauth-proxy is ready on the Unix socket {path}", err=True)
                continue
            wanted, port = settings.proxy_port, listener.socket.getsockname()[1]
            if wanted < port <= wanted + FURTHER_PORTS and wanted:
                click.echo(f"Port {wanted} is in use by another program, so another one was taken.", err=True)
            click.echo(f"grok-oauth-proxy is ready: {listener.address}/v1", err=True)
    manager.tell("READY=1", f"STATUS=Serving {found[0].address}")


def _warnings(settings: Settings, tls: ssl.SSLContext | None, found: Sequence[Listener]) -> Iterator[str]:
    """What a person should know of how it can be reached."""
    if tls is not None and settings.proxy_tls_cert is not None:
        if what := out_of_time(tls, settings.proxy_tls_cert):
            yield f"the certificate in PROXY_TLS_CERT {what}: clients will not take it."
        return
    for listener in found:
        if listener.socket.family != socket.AF_UNIX and not is_loopback(listener.socket.getsockname()[0]):
            yield (
                f"the way to {listener.address} is not encrypted: the network can read the key, and all that "
                "is asked and answered. Set PROXY_TLS_CERT and PROXY_TLS_KEY, or use PROXY_UDS or `ssh -L`."
            )


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
