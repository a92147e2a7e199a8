"""Where the browser comes back to after a sign-in: a page on loopback, for as long as the sign-in lasts.

Law: what comes is handed to the sign-in, one answer at a time, which says what it is worth. Only the accounts
page may have scripts read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from grok_oauth_proxy.listening import listen

FIRST_PORT: Final = 56121
"""The port that xAI's own programs use (facts: OAuth server); the next free one when it is busy."""
PATH: Final = "/callback"
_ACCOUNTS: Final = "https://accounts.x.ai"
_WAITING: Final = 16
"""Answers that may wait to be looked at; the sign-in looks at them as they come."""
_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_OVER: Final = (400, "This sign-in is over.")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a browser brought, and who waits to be told what it was worth."""

    query: dict[str, str] = field(repr=False)
    told: asyncio.Future[tuple[int, str]]

    def tell(self, status: int, sentence: str) -> None:
        """Answer the browser."""
        if not self.told.done():
            self.told.set_result((status, sentence))


@dataclass(frozen=True, slots=True)
class CallbackPage:
    """`address` is the redirect URI."""

    address: str
    answers: asyncio.Queue[Answer] = field(default_factory=lambda: asyncio.Queue(_WAITING))


@asynccontextmanager
async def callback_page() -> AsyncIterator[CallbackPage]:
    """Serve it."""
    sock = listen("127.0.0.1", FIRST_PORT)
    page = CallbackPage(f"http://127.0.0.1:{sock.getsockname()[1]}{PATH}")
    waiting: list[Answer] = []
    over = asyncio.Event()
    config = uvicorn.Config(
        _app(page, waiting, over),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _Quiet(config)
    serving = asyncio.create_task(server.serve(sockets=[sock]), name="callback-page")
    try:
        yield page
    finally:
        over.set()
        for answer in waiting:
            answer.tell(*_OVER)
        server.should_exit = True
        await serving
        sock.close()


def _app(page: CallbackPage, waiting: list[Answer], over: asyncio.Event) -> Starlette:
    async def take(request: Request) -> Response:
        if request.method != "GET" or request.headers.get("origin", _ACCOUNTS) != _ACCOUNTS:
            return HTMLResponse("Not from here.", 403, _HEADERS)
        answer = Answer(dict(request.query_params), asyncio.get_running_loop().create_future())
        waiting.append(answer)
        if over.is_set():
            answer.tell(*_OVER)
        try:
            page.answers.put_nowait(answer)
        except asyncio.QueueFull:
            answer.tell(429, "Too many answers at once.")
        status, told = await answer.told
        return HTMLResponse(f"<!doctype html><title>Grok</title><p>{escape(told)}</p>", status, _HEADERS)

    return Starlette(
        routes=[Route(PATH, take, methods=["GET"])],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
            Middleware(
                CORSMiddleware, allow_origins=[_ACCOUNTS], allow_methods=["GET"], allow_private_network=True
            ),
        ],
    )


class _Quiet(uvicorn.Server):
    """Leaves the signals to the command."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
