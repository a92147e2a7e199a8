"""The API's way of treating a request: remember it, check the bearer, misbehave if asked, answer."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from grok_oauth_proxy.sim import directives as x_sim
from grok_oauth_proxy.sim.call import Call, UnreadableError
from grok_oauth_proxy.sim.deliver import deliver
from grok_oauth_proxy.sim.directives import DirectiveError, Directives
from grok_oauth_proxy.sim.exchange import ClientGoneError, Exchange, Record
from grok_oauth_proxy.sim.media import UPLOAD_FRAMING
from grok_oauth_proxy.sim.rejections import KINDS, STALE_KINDS, flat, plain, rejection, stale
from grok_oauth_proxy.sim.reply import Header, Reply
from grok_oauth_proxy.sim.routes import resolve
from grok_oauth_proxy.sim.world import World, bearer

ECHO = "/v1/echo"
EDGE_HEADERS: tuple[Header, ...] = (
    (b"alt-svc", b'h3=":443"; ma=86400'),
    (b"set-cookie", b"__cf_bm=simulated; path=/; HttpOnly; Secure"),
    (b"set-cookie", b"_cfuvid=simulated; path=/; HttpOnly; Secure"),
)


class Api:
    """Everything under /v1, as an ASGI application."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._settled)
        self._remember(exchange)
        try:
            await self._serve(exchange)
        except ClientGoneError:
            self._world.counters.aborted_requests += 1
            if exchange.record:
                exchange.record.aborted = True
        finally:
            exchange.settle()

    def _remember(self, exchange: Exchange) -> None:
        world = self._world
        world.counters.api_requests += 1
        world.counters.open_requests += 1
        exchange.record = Record(
            exchange.method,
            exchange.target,
            world.masked(exchange.headers),
            world.bearer_serial(exchange.headers),
        )
        world.requests.append(exchange.record)

    def _settled(self) -> None:
        self._world.counters.open_requests -= 1

    async def _serve(self, exchange: Exchange) -> None:
        refused = self._refusal(exchange)
        try:
            asked = self._world.in_force(x_sim.parse(exchange.headers))
        except DirectiveError as error:
            asked, refused = Directives(), plain(400, str(error))
        if asked.cut == "request":
            await exchange.while_connected(_aborted(exchange))
            return
        body = b"" if asked.early else await self._read(exchange)
        await exchange.while_connected(self._answer(Call(self._world, exchange, asked, body), refused))

    async def _read(self, exchange: Exchange) -> bytes:
        """The body, as far as an endpoint will look at it; the rest is measured and dropped."""
        limit = 0 if exchange.path.startswith(ECHO) else self._world.config.max_upload_bytes + UPLOAD_FRAMING
        kept = bytearray()
        async for data in exchange.body():
            if len(kept) < limit:
                kept += data
        return bytes(kept)

    def _refusal(self, exchange: Exchange) -> Reply | None:
        """What the bearer check says, at the moment the head arrived; None lets the request pass."""
        world, token = self._world, bearer(exchange.headers)
        if exchange.method == "OPTIONS" or token in world.config.api_keys:
            return None
        if not token:
            return KINDS["no-credentials"]
        if not world.ledger.accepts(token, world.now()):
            return stale(world.config.stale_style)
        if not world.ledger.accepts(token, world.now(), world.config.edge_lag):
            return stale("403-flat")
        return KINDS[world.config.reject_oauth] if world.config.reject_oauth else None

    async def _answer(self, call: Call, refused: Reply | None) -> None:
        started = self._world.now()
        await asyncio.sleep(call.directives.delay)
        reply = refused or fault(call.directives) or self._endpoint(call)
        if reply.body in (KINDS[kind].body for kind in STALE_KINDS):
            self._world.counters.stale_rejections += 1
        elapsed = self._world.now() - started
        pace = call.directives.chunk_delay
        await deliver(
            call.exchange,
            replace(reply, headers=(*reply.headers, *_common_headers(call.directives, elapsed))),
            call.directives,
            self._world.config.chunk_delay if pace is None else pace,
        )

    @staticmethod
    def _endpoint(call: Call) -> Reply:
        endpoint, params = resolve(call.exchange.method, call.exchange.path)
        try:
            reply = endpoint(replace(call, params=params))
        except UnreadableError as error:
            return plain(error.status, str(error))
        status = call.directives.status
        return reply if status is None else replace(reply, status=status)


def fault(asked: Directives) -> Reply | None:
    """The misbehaviour asked for in place of an answer."""
    if asked.redirect is not None:
        return Reply(307, b"", "", ((b"location", asked.redirect.encode("latin-1")),))
    if asked.reject is not None:
        return rejection(asked.reject, asked.status)
    if asked.status is not None and asked.status >= 300:
        return flat(
            asked.status, f"simulated:{asked.status}", f"Simulated answer with status {asked.status}."
        )
    return None


def _common_headers(asked: Directives, elapsed: float) -> tuple[Header, ...]:
    own: list[Header] = [
        (b"x-request-id", str(uuid.uuid4()).encode()),
        (b"x-metrics-e2e-ms", b"%d" % (elapsed * 1000)),
    ]
    if asked.retry_after is not None:
        own.append((b"retry-after", asked.retry_after.encode("latin-1")))
    return (*own, *EDGE_HEADERS)


async def _aborted(exchange: Exchange) -> None:
    exchange.abort()
