"""The control API under /_sim: what tests use to arrange the world and to look into it. No authentication."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grok_oauth_proxy.sim.auth import token_reply
from grok_oauth_proxy.sim.config import ConfigError
from grok_oauth_proxy.sim.grants import DEFAULT_CLIENT, Principal
from grok_oauth_proxy.sim.rejections import KINDS
from grok_oauth_proxy.sim.token_faults import is_fault
from grok_oauth_proxy.sim.world import World

DEFAULT_WAIT = 5.0  # seconds
POLL_INTERVAL = 0.005  # seconds between two looks at a counter


class UnfitError(ValueError):
    """A control request that does not fit; answered with 422 and the message."""


async def read_object(request: Request) -> dict[str, object]:
    """The JSON object sent; an empty body counts as {}. Raises UnfitError."""
    body = await request.body()
    try:
        value = json.loads(body or b"{}")
    except ValueError:
        raise UnfitError("the body is not JSON") from None
    if not isinstance(value, dict):
        raise UnfitError("the body is not a JSON object")
    return value


def text(fields: Mapping[str, object], name: str, default: str = "") -> str:
    """A string field. Raises UnfitError for another type."""
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise UnfitError(f"{name} must be a string")
    return value


def number(fields: Mapping[str, object], name: str, default: float) -> float:
    """A number, also when written as text in a query. Raises UnfitError."""
    try:
        return float(str(fields.get(name, default)))
    except ValueError:
        raise UnfitError(f"{name} must be a number") from None


def only(fields: Mapping[str, object], *allowed: str) -> None:
    """Raises UnfitError naming a field that is not among `allowed`."""
    for name in fields:
        if name not in allowed:
            raise UnfitError(f"{name}: unknown field")


@dataclass(frozen=True)
class Control:
    """The handlers, one method an endpoint."""

    world: World

    async def state(self, _request: Request) -> Response:
        world = self.world
        return JSONResponse({"config": world.config.as_json(), "counters": asdict(world.counters)})

    async def reset(self, _request: Request) -> Response:
        self.world.reset()
        return Response(status_code=204)

    async def config(self, request: Request) -> Response:
        changes = await read_object(request)
        kind = text(changes, "reject_oauth")
        if kind and kind not in KINDS:
            raise UnfitError(f"reject_oauth: no rejection is called {kind}")
        self.world.config.patch(changes)
        return JSONResponse(self.world.config.as_json())

    async def login(self, request: Request) -> Response:
        fields = await read_object(request)
        only(fields, "client_id", "access_lifetime", "age", "principal_type", "principal_id", "scope")
        world = self.world
        pair = world.ledger.login(
            text(fields, "client_id", DEFAULT_CLIENT),
            world.now() - number(fields, "age", 0.0),
            number(fields, "access_lifetime", world.config.access_lifetime),
            principal=Principal(text(fields, "principal_type", "User"), text(fields, "principal_id")),
            scope=text(fields, "scope"),
        )
        return JSONResponse(token_reply(world, pair))

    async def revoke(self, _request: Request) -> Response:
        return JSONResponse({"revoked": self.world.ledger.revoke_all()})

    async def expire_access(self, _request: Request) -> Response:
        return JSONResponse({"expired": self.world.ledger.expire_access()})

    async def token_faults(self, request: Request) -> Response:
        fields = await read_object(request)
        only(fields, "kind", "times")
        kind = text(fields, "kind")
        if not is_fault(kind):
            raise UnfitError(f"kind: no fault is called {kind!r}")
        self.world.token_faults.extend([kind] * int(number(fields, "times", 1)))
        return JSONResponse({"queued": list(self.world.token_faults)})

    async def clear_token_faults(self, _request: Request) -> Response:
        self.world.token_faults.clear()
        return JSONResponse({"queued": []})

    async def approve(self, request: Request) -> Response:
        return await self._decide(request, "approved")

    async def deny(self, request: Request) -> Response:
        return await self._decide(request, "denied")

    async def _decide(self, request: Request, decision: Literal["approved", "denied"]) -> Response:
        user_code = text(await read_object(request), "user_code")
        if not self.world.devices.decide(user_code, decision):
            return JSONResponse({"error": f"no device login has the code {user_code!r}"}, 404)
        return JSONResponse({"user_code": user_code, "decision": decision})

    async def requests(self, _request: Request) -> Response:
        return JSONResponse([asdict(record) for record in self.world.requests])

    async def forget_requests(self, _request: Request) -> Response:
        self.world.requests.clear()
        return Response(status_code=204)

    async def wait_aborted(self, request: Request) -> Response:
        return await self._wait(request, "aborted_requests")

    async def wait(self, request: Request) -> Response:
        return await self._wait(request, request.query_params.get("counter", ""))

    async def _wait(self, request: Request, counter: str) -> Response:
        """Long-poll until a counter is at least n, or at most `max`; says whether it got there in time."""
        query = request.query_params
        if counter not in asdict(self.world.counters):
            raise UnfitError(f"counter: no counter is called {counter!r}")
        low, high = number(query, "n", 0), number(query, "max", float("inf"))

        def value() -> int:
            return int(getattr(self.world.counters, counter))

        loop = asyncio.get_running_loop()
        deadline = loop.time() + number(query, "timeout", DEFAULT_WAIT)
        # The counters are plain numbers; nothing signals their change.
        while not (reached := low <= value() <= high) and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_INTERVAL)
        return JSONResponse({counter: value(), "reached": reached})


def unfit(_request: Request, error: Exception) -> Response:
    """422 with a message that names what does not fit."""
    key = error.key if isinstance(error, ConfigError) else None
    return JSONResponse({"error": str(error), "key": key}, 422)


def control_api(world: World) -> Starlette:
    """The /_sim endpoints."""
    control = Control(world)
    table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("GET", "state", control.state),
        ("POST", "reset", control.reset),
        ("PATCH", "config", control.config),
        ("POST", "login", control.login),
        ("POST", "revoke", control.revoke),
        ("POST", "expire-access", control.expire_access),
        ("POST", "token-faults", control.token_faults),
        ("DELETE", "token-faults", control.clear_token_faults),
        ("POST", "device/approve", control.approve),
        ("POST", "device/deny", control.deny),
        ("GET", "requests", control.requests),
        ("DELETE", "requests", control.forget_requests),
        ("GET", "wait-aborted", control.wait_aborted),
        ("GET", "wait", control.wait),
    ]
    return Starlette(
        routes=[Route(f"/_sim/{path}", handler, methods=[method]) for method, path, handler in table],
        exception_handlers={ConfigError: unfit, UnfitError: unfit},
    )
