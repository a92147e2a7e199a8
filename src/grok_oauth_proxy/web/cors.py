"""CORS for the origins in PROXY_ALLOWED_ORIGINS: their pages may read the answers, and no others."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware

from grok_oauth_proxy.asgi import Application, Receive, Scope, Send
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.events import Observer
from grok_oauth_proxy.proxy.headers import header
from grok_oauth_proxy.web.gateway import told


def with_cors(app: Application, origins: tuple[str, ...], *, observer: Observer, clock: Clock) -> Application:
    """`app` for the pages of `origins`. Their preflights, which carry no key, are answered here."""
    if not origins:
        return app
    cors = CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["*"],
        allow_private_network=True,
    )
    preflight = told(cors, observer, clock)

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        origin = header(scope["headers"], b"origin") or b""
        chosen = app
        if origin.decode("latin-1").lower() in origins:
            chosen = preflight if _is_preflight(scope) else cors
        await chosen(scope, receive, send)

    return choose


def _is_preflight(scope: Scope) -> bool:
    """As CORSMiddleware sees it (Fetch, CORS-preflight request)."""
    return (
        scope["method"] == "OPTIONS"
        and header(scope["headers"], b"access-control-request-method") is not None
    )
