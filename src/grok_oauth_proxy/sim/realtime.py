"""WebSocket endpoints: a greeting, then every frame comes back, text in an envelope and binary as it was."""

from __future__ import annotations

import json

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from grok_oauth_proxy.sim.exchange import Record, target_of
from grok_oauth_proxy.sim.rejections import KINDS, plain, stale
from grok_oauth_proxy.sim.reply import Reply
from grok_oauth_proxy.sim.world import World, bearer

PATHS = ("/v1/realtime", "/v1/responses", "/v1/tts", "/v1/stt", "/v1/echo")
SECRET_PROTOCOL = "xai-client-secret."  # noqa: S105 - a prefix, not a secret


class Realtime:
    """The WebSocket half of the API, as an ASGI application."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        record = self._remember(scope)
        refused = self._refusal(scope)
        if refused is not None:
            record.status = refused.status
            await socket.send_denial_response(
                Response(refused.body, refused.status, media_type=refused.content_type)
            )
            return
        record.status = 101
        protocols: list[str] = scope["subprotocols"]
        chosen = next(
            (p for p in protocols if not p.startswith(SECRET_PROTOCOL)), next(iter(protocols), None)
        )
        await socket.accept(subprotocol=chosen)
        await self._converse(socket, record)

    def _remember(self, scope: Scope) -> Record:
        world, headers = self._world, list(scope["headers"])
        world.counters.websockets += 1
        record = Record("WEBSOCKET", target_of(scope), world.masked(headers), world.bearer_serial(headers))
        world.requests.append(record)
        return record

    def _refusal(self, scope: Scope) -> Reply | None:
        world = self._world
        if scope["path"] not in PATHS:
            return plain(404, "Not Found")
        offered = [
            p.removeprefix(SECRET_PROTOCOL) for p in scope["subprotocols"] if p.startswith(SECRET_PROTOCOL)
        ]
        token = bearer(list(scope["headers"])) or next(iter(offered), None)
        if token is None:
            return KINDS["no-credentials"]
        if token in world.config.api_keys or world.ledger.accepts(token, world.now(), world.config.edge_lag):
            return None
        world.counters.stale_rejections += 1
        return stale(world.config.stale_style)

    async def _converse(self, socket: WebSocket, record: Record) -> None:
        greeting = {"type": "session.created", "target": record.target, "headers": record.headers}
        await socket.send_text(json.dumps(greeting))
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                await self._echo(socket, message.get("text"), message.get("bytes"))
            except WebSocketDisconnect:
                return

    @staticmethod
    async def _echo(socket: WebSocket, text: str | None, data: bytes | None) -> None:
        """`{"type":"sim.close","code":N,"reason":S}` closes from this side."""
        if text is None:
            await socket.send_bytes(data or b"")
            return
        if text.startswith('{"type":"sim.close"'):
            wish = json.loads(text)
            await socket.close(int(wish.get("code", 1000)), str(wish.get("reason", "")))
            raise WebSocketDisconnect(1000)
        await socket.send_text(json.dumps({"type": "sim.echo", "text": text}, ensure_ascii=False))
