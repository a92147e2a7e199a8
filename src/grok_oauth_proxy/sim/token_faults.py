"""How the token endpoint may misbehave, one kind a request, queued through POST /_sim/token-faults."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from grok_oauth_proxy.sim.rejections import cloudflare_page


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Hangup(Response):
    """Closes the connection before any byte of an answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - nothing is sent
        scope["state"]["transport"].abort()
        await _until_disconnected(receive)


class Silence(Response):
    """Says nothing until the client goes away."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - nothing is sent
        await _until_disconnected(receive)


NOT_ENTITLED = {"error": "access_denied", "error_description": "This account is not entitled to API access."}
NESTED = {"error": {"message": "Upstream failure", "type": "server_error", "code": "invalid_grant"}}
UNAVAILABLE = {"error": "temporarily_unavailable", "error_description": "Try again shortly."}

INSTEAD: dict[str, Callable[[], Response]] = {
    "429": lambda: JSONResponse({"error": "slow_down"}, 429, headers={"retry-after": "1"}),
    "500": lambda: JSONResponse({"error": "server_error"}, 500),
    "502-html": lambda: HTMLResponse(cloudflare_page(502), 502),
    "403-json": lambda: JSONResponse(NOT_ENTITLED, 403),
    "403-html": lambda: HTMLResponse(cloudflare_page(403), 403),
    "empty": lambda: Response(b"", 200, media_type="application/json"),
    "malformed": lambda: Response(b'{"access_token": "eyJ', 200, media_type="application/json"),
    "nested-error": lambda: JSONResponse(NESTED, 400),
    "nonstring-error": lambda: JSONResponse({"error": 400, "error_description": "invalid_grant"}, 400),
    "temporarily_unavailable": lambda: JSONResponse(UNAVAILABLE, 503),
    "invalid_grant": lambda: JSONResponse({"error": "invalid_grant"}, 400),
    "invalid_client": lambda: JSONResponse({"error": "invalid_client"}, 401),
    "hang": Silence,
    "drop-before": Hangup,
}


def is_fault(kind: str) -> bool:
    """Whether `kind` can be queued: a key of INSTEAD, drop-after, or slow=SECONDS."""
    if kind.startswith("slow="):
        seconds = kind.removeprefix("slow=")
        return seconds.replace(".", "", 1).isdigit()
    return kind in INSTEAD or kind == "drop-after"


def answer_instead(kind: str) -> Response | None:
    """What to answer without processing the request; None if it is to be processed."""
    make = INSTEAD.get(kind)
    return make() if make else None


def delay_after(kind: str | None) -> float:
    """Seconds between processing and answering."""
    return float(kind.removeprefix("slow=")) if kind and kind.startswith("slow=") else 0.0
