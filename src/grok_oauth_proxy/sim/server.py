"""The process: command line, listening socket, and an orderly end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import FrameType

import click
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from grok_oauth_proxy.sim.api import Api
from grok_oauth_proxy.sim.auth import authorization_server
from grok_oauth_proxy.sim.config import Config
from grok_oauth_proxy.sim.connection import Connection
from grok_oauth_proxy.sim.control import control_api
from grok_oauth_proxy.sim.realtime import Realtime
from grok_oauth_proxy.sim.world import World

HEAD_LIMIT = 256 * 1024  # bytes of request line and headers
PATIENCE = 0.5  # seconds that open answers get after a signal


class Server(uvicorn.Server):
    """uvicorn's server, which announces itself and cuts what is still open after PATIENCE."""

    def __init__(self, config: uvicorn.Config, announcement: str) -> None:
        super().__init__(config)
        self._announcement = announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        click.echo(self._announcement)
        sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(PATIENCE, self._cut)
        await super().shutdown(sockets)

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()


class Simulator:
    """Hands each request to the authorization server, the API or the control API."""

    def __init__(self, world: World) -> None:
        self._api: ASGIApp = Api(world)
        self._auth: ASGIApp = authorization_server(world)
        self._control: ASGIApp = control_api(world)
        self._realtime: ASGIApp = Realtime(world)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._room(scope)(scope, receive, send)
        except Exception:
            # uvicorn's own logger is silent here, and a defect of the simulator must not be.
            traceback.print_exc()
            raise

    def _room(self, scope: Scope) -> ASGIApp:
        if scope["type"] == "websocket":
            return self._realtime
        path: str = scope["path"]
        if path.startswith("/_sim/"):
            return self._control
        return self._api if path == "/v1" or path.startswith("/v1/") else self._auth


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle off only where the protocol is named; otherwise answers wait for a delayed ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


def _base_url(sock: socket.socket, host: str, tls: bool) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{sock.getsockname()[1]}"


def _exit_on_signal(server: Server) -> None:
    """uvicorn raises the signal again after its shutdown; with these handlers the exit code stays 0."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def serve(world: World, sock: socket.socket, url: str, tls: tuple[Path, Path] | None) -> None:
    """Run until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        Simulator(world),
        http=Connection,
        ws="websockets-sansio",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=HEAD_LIMIT,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        ssl_certfile=tls and tls[0],
        ssl_keyfile=tls and tls[1],
    )
    server = Server(config, json.dumps({"url": url, "pid": os.getpid()}))
    _exit_on_signal(server)
    server.run([sock])


FilePath = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, show_default=True, help="0 picks a free one.")
@click.option("--public-issuer", help="What discovery and the JWTs name; the bound URL by default.")
@click.option("--tls-cert", type=FilePath)
@click.option("--tls-key", type=FilePath)
@click.option("--access-lifetime", default=21600.0, show_default=True, help="Seconds.")
@click.option("--grace", default=0.0, show_default=True, help="Seconds a rotated refresh token stays good.")
@click.option("--device-approval", type=click.Choice(["auto", "manual"]), default="auto", show_default=True)
def main(
    host: str,
    port: int,
    public_issuer: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    access_lifetime: float,
    grace: float,
    device_approval: str,
) -> None:
    """Run a simulated xAI (authorization server and API) for tests and the demo."""
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    tls = (tls_cert, tls_key) if tls_cert and tls_key else None
    sock = _listen(host, port)
    url = _base_url(sock, host, tls is not None)
    config = Config(access_lifetime=access_lifetime, grace=grace, device_approval=device_approval)
    serve(World.create((public_issuer or url).rstrip("/"), config), sock, url, tls)
