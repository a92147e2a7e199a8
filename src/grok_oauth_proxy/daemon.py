"""The life of the daemon in reading order: check, load the grant, listen, serve, drain."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import uvicorn

from grok_oauth_proxy.address import ADDRESS_FILE, read_address, write_address
from grok_oauth_proxy.bugs import log_bug
from grok_oauth_proxy.certificate import out_of_time, reload_certificate, server_context
from grok_oauth_proxy.errors import ConfigurationError, ProxyError, StartRefused
from grok_oauth_proxy.events import SettingsRefused
from grok_oauth_proxy.listening import FURTHER_PORTS, UNIX, Listener, bounds, is_listened_at, listeners
from grok_oauth_proxy.observe.log import announce, configure_logging, log_event
from grok_oauth_proxy.origins import is_loopback
from grok_oauth_proxy.safe_start import heeded, prepare_state, refuse_unsafe_start
from grok_oauth_proxy.secrecy import keep_memory_private
from grok_oauth_proxy.settings import RELOADED, Settings, added_by_file, load_settings
from grok_oauth_proxy.systemd import Manager, inherited_sockets
from grok_oauth_proxy.workers import ALIVE, READY, Workers, metrics_folder

if TYPE_CHECKING:
    from grok_oauth_proxy.app import Service
    from grok_oauth_proxy.server import Server

AsOpened = Callable[[Settings], Settings]
"""Gives settings the host of the sockets that were handed over."""
_Changed = TypeVar("_Changed")
RunningApp = Callable[[Settings], AbstractAsyncContextManager["Service"]]
"""`running_app` in app.py."""


@dataclass(frozen=True)
class _Start:
    """What is known at the start, and does not change; but `tls` may be given another certificate."""

    settings: Settings
    tls: ssl.SSLContext | None
    opened: Sequence[socket.socket]
    manager: Manager
    as_opened: AsOpened
    at_terminal: bool


def run(settings: Settings, *, workers_sockets: Sequence[int] = ()) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Raises `ProxyError` when it may not or cannot start.

    `workers_sockets`: the descriptors of the sockets to serve as one of several processes.
    """
    os.umask(0o077)
    keep_memory_private()
    at_terminal = _is_at_terminal()
    _occupy_standard_streams()
    configure_logging(settings.log_level, settings.log_format)
    manager, opened = Manager(), inherited_sockets()
    served = [_inherited(descriptor) for descriptor in workers_sockets]
    as_opened = _for_sockets(served or opened)
    settings = as_opened(settings)
    refuse_unsafe_start(settings)
    start = _Start(settings, server_context(settings), opened, manager, as_opened, at_terminal)
    if settings.proxy_workers > 1 and not served:
        _take_what_is_there_as_kept()
        return asyncio.run(_supervise(start))
    # Imported here, because it takes half of a start: what is refused is refused without it, and the process
    # that watches over workers never needs it.
    from grok_oauth_proxy.app import running_app

    _take_what_is_there_as_kept()
    loop_factory = uvicorn.Config(app=_no_app, log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_work(start, running_app, served) if served else _serve(start, running_app))
    return 0


def _take_what_is_there_as_kept() -> None:
    """A full look for garbage leaves it out from now on, and holds up requests for no time."""
    gc.freeze()
    gc.set_threshold(2000 if sys.version_info >= (3, 13) else 700)  # Python's own


def _for_sockets(opened: Sequence[socket.socket]) -> AsOpened:
    """What gives settings the host of the sockets: one open to others wants a key, whoever opened it."""
    hosts = [sock.getsockname()[0] for sock in opened if sock.family != socket.AF_UNIX]
    exposed = [host for host in hosts if not is_loopback(host)]

    def as_opened(settings: Settings) -> Settings:
        if not exposed or not is_loopback(settings.proxy_host):
            return settings
        return settings.model_copy(update={"proxy_host": exposed[0]})

    return as_opened


def _is_at_terminal() -> bool:
    """Whether a terminal started it, with which it ends: when that is closed, it sends SIGHUP."""
    survives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup(1)
    return not survives and any(os.isatty(number) for number in range(3))


def _occupy_standard_streams() -> None:
    """Where one was closed, the next file or socket would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    # Python has None in the place of one that was closed, and the log is written there.
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


async def _serve(start: _Start, running_app: RunningApp) -> None:
    hung_up = asyncio.Event()
    if not start.at_terminal:  # told while it starts, it reads the settings again once it serves
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
    async with (
        running_app(start.settings) as service,
        _reassured(start.manager),
        _answered(hung_up, partial(_reload, service, start)),
    ):
        with _listening(start) as found:
            server = _server(
                service,
                start,
                on_ready=partial(_greet, start, found),
                on_end=partial(start.manager.tell, "STOPPING=1"),
                on_hangup=None if start.at_terminal else hung_up.set,
            )
            await server.serve(sockets=[listener.socket for listener in found])


def _server(
    service: Service,
    start: _Start,
    *,
    on_ready: Callable[[], object],
    on_end: Callable[[], object],
    on_hangup: Callable[[], object] | None,
) -> Server:
    from grok_oauth_proxy.server import Server  # as `run` does with app.py

    return Server(
        service,
        service.observer,
        bounds=bounds(start.settings),
        tls=start.tls,
        drain=lambda: service.settings.proxy_drain_timeout,
        on_ready=on_ready,
        on_end=on_end,
        on_hangup=on_hangup,
    )


async def _reload(service: Service, start: _Start) -> None:
    """Read the settings, the certificate and the stores again. What is bad is told, and changes nothing."""
    start.manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        service.observer(_read_again(start, service.heed))
    except ProxyError as error:
        service.observer(SettingsRefused(error.message))
    await service.look_at_stores()
    start.manager.tell("READY=1")


def _read_again(start: _Start, heed: Callable[[Settings], _Changed]) -> _Changed:
    """What `heed` says to the settings as they are by now. Raises `ProxyError`; then nothing has changed."""
    wanted = start.as_opened(load_settings())
    server_context(start.settings)  # a trial: a bad certificate is refused before anything has changed
    changed = heed(wanted)
    if start.tls is not None:
        reload_certificate(start.tls, start.settings)
    configure_logging(wanted.log_level, wanted.log_format)
    return changed


async def _supervise(start: _Start) -> int:
    prepare_state(start.settings, log_event)
    with _listening(start) as found, metrics_folder() as folder:
        async with _reassured(start.manager):
            handed_over = _HandedOver(start)
            workers = Workers(
                start.settings.proxy_workers,
                [listener.socket for listener in found],
                folder,
                lambda: handed_over.added,
                **({"patience": start.manager.patience} if start.manager.patience else {}),
                on_ready=partial(_greet, start, found),
                on_end=partial(start.manager.tell, "STOPPING=1"),
                on_hangup=None if start.at_terminal else handed_over.read_again,
            )
            return await workers.run()


class _HandedOver:
    """What counts of the settings file for a worker that starts now: what counts for the others, too.

    Law: what counts only after a restart stays as it was at the start, whatever the file says by now.
    """

    def __init__(self, start: _Start) -> None:
        self._start = start
        self._settings = start.settings
        self.added = added_by_file()

    def read_again(self) -> None:
        """As the workers do (`_reload`), who tell of it."""
        with suppress(ProxyError):
            _read_again(self._start, self._heed)

    def _heed(self, wanted: Settings) -> None:
        self._settings = heeded(self._settings, wanted)
        kept = {name: value for name, value in self.added.items() if name.lower() not in RELOADED}
        new = {name: value for name, value in added_by_file().items() if name.lower() in RELOADED}
        self.added = kept | new


@asynccontextmanager
async def _answered(asked: asyncio.Event, answer: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Whenever it is `asked`, `answer` is called, once at a time."""

    async def wait() -> None:
        while True:
            await asked.wait()
            asked.clear()
            try:
                await answer()
            except Exception as error:  # noqa: BLE001 - the next signal is answered all the same
                log_bug("A signal was not answered.", error)

    waiting = asyncio.create_task(wait(), name="reload")
    try:
        yield
    finally:
        waiting.cancel()


@asynccontextmanager
async def _reassured(manager: Manager, tell: Callable[[], object] | None = None) -> AsyncIterator[None]:
    """The service manager hears of this process for as long as the block lasts."""
    alive = asyncio.create_task(manager.reassure(tell), name="watchdog")
    try:
        yield
    finally:
        alive.cancel()
        manager.close()


async def _work(start: _Start, running_app: RunningApp, sockets: list[socket.socket]) -> None:
    with ExitStack() as stack:
        for sock in sockets:
            stack.enter_context(sock)
        hung_up = asyncio.Event()
        os.set_blocking(sys.stdout.fileno(), False)  # a parent that is stopped reads nothing
        async with (
            _reassured(start.manager, partial(_tell_parent, ALIVE)),
            running_app(start.settings) as service,
            _answered(hung_up, partial(_reload, service, start)),
        ):
            server = _server(
                service,
                start,
                on_ready=partial(_tell_parent, READY),
                on_end=lambda: None,
                on_hangup=hung_up.set,
            )
            loop, parent = asyncio.get_running_loop(), sys.stdin.fileno()

            def orphaned() -> None:
                """Nobody writes to it any more: it can be read once who started this process is gone."""
                loop.remove_reader(parent)
                server.should_exit = True

            loop.add_reader(parent, orphaned)
            await server.serve(sockets=sockets)


def _tell_parent(line: bytes) -> None:
    with suppress(BrokenPipeError, BlockingIOError):  # the parent was killed, which is noticed in a moment
        os.write(sys.stdout.fileno(), line)


def _inherited(descriptor: int) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except (OSError, ValueError):  # the second from a negative number
        raise ConfigurationError(
            f"--worker {descriptor} names no socket. Set PROXY_WORKERS to have several processes."
        ) from None


@contextmanager
def _listening(start: _Start) -> Iterator[list[Listener]]:
    address = start.settings.grok_proxy_auth_state.with_name(ADDRESS_FILE)
    with listeners(start.settings, start.opened) as found, _address_kept(address, found[0].address):
        yield found


def _greet(start: _Start, found: Sequence[Listener]) -> None:
    for warning in _warnings(start, found):
        announce(warning, level="warning")
    for listener in found:
        if listener.address.startswith(UNIX):
            announce(f"grok-oauth-proxy is ready on the Unix socket {listener.address.removeprefix(UNIX)}")
            continue
        wanted, port = start.settings.proxy_port, listener.socket.getsockname()[1]
        if wanted < port <= wanted + FURTHER_PORTS and wanted and not start.opened:
            announce(f"Port {wanted} is in use, so another one was taken.")
        announce(f"grok-oauth-proxy is ready: {listener.address}/v1")
    start.manager.tell("READY=1", f"STATUS=Serving {found[0].address}")


def _warnings(start: _Start, found: Sequence[Listener]) -> Iterator[str]:
    """What a person should know of how it can be reached."""
    certificate = start.settings.proxy_tls_cert
    if start.tls is not None and certificate is not None:
        if what := out_of_time(start.tls, certificate):
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
    """Keep the address where other commands find it, for as long as this process serves it.

    What stood there before stands there again afterwards, if a proxy was there, and still is.
    """
    before = ""
    try:
        with suppress(OSError):
            before = read_address(path)
        if before == url or not is_listened_at(before):
            before = ""
        write_address(path, url)
    except OSError as error:
        raise StartRefused(
            f"{path} cannot be written: {error.strerror}. Make its folder writable.", code="state_unusable"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            if read_address(path) == url:
                if before and is_listened_at(before):
                    write_address(path, before)
                else:
                    path.unlink()


async def _no_app(*_: object) -> None:
    """uvicorn wants an application before it tells which event loop it would use."""
