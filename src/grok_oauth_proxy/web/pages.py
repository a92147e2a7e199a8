"""What the proxy shows of itself: /health and /metrics. Starlette, beside the way of the requests."""

from __future__ import annotations

import http
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grok_oauth_proxy.credentials.status import CredentialStatus
from grok_oauth_proxy.errors import ClientError, ProxyError
from grok_oauth_proxy.observe.health import UpstreamPing, health_report
from grok_oauth_proxy.observe.news import News
from grok_oauth_proxy.proxy.replies import OURS_ALONE, error_body, error_headers, new_request_id
from grok_oauth_proxy.proxy.target import outside_api

_READ: Final = ["GET", "HEAD"]
_HEADERS: Final = {name.decode(): value.decode() for name, value in OURS_ALONE}


def create_pages(
    *,
    status: Callable[[], CredentialStatus],
    news: News,
    ping: Callable[[], Awaitable[UpstreamPing]],
    metrics: Callable[[], bytes],
    api_base: str,
    key_set: bool,
) -> Starlette:
    """The ASGI application for everything outside /v1."""

    async def health(request: Request) -> Response:
        wanted = request.query_params.get("deep", "").lower() in ("1", "true", "yes")
        code, report = health_report(
            status(), api_base, news, await ping() if wanted else None, key_set=key_set
        )
        return JSONResponse(report, code, _HEADERS)

    async def show_metrics(_request: Request) -> Response:
        return Response(metrics(), 200, _HEADERS, "text/plain; version=0.0.4; charset=utf-8")

    pages = Starlette(
        routes=[
            Route("/health", health, methods=_READ),
            Route("/metrics", show_metrics, methods=_READ),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _give_up},
    )
    pages.router.redirect_slashes = False
    return pages


async def _refuse(request: Request, error: Exception) -> Response:
    failure = outside_api(request.url.path)
    if isinstance(error, HTTPException) and error.status_code != http.HTTPStatus.NOT_FOUND:
        failure = ClientError(
            f"This path does not take {request.method}. Use GET.",
            code="method_not_allowed",
            status=error.status_code,
        )
    return _answer(failure)


async def _give_up(_request: Request, _error: Exception) -> Response:
    # It is raised again behind this, and told as a bug.
    return _answer(ProxyError("The proxy failed to handle this request.", code="internal_error"))


def _answer(failure: ProxyError) -> Response:
    body = error_body(failure)
    answer = Response(body, failure.status)
    answer.raw_headers = [*error_headers(failure, body, new_request_id())]
    if failure.status == http.HTTPStatus.METHOD_NOT_ALLOWED:
        answer.headers["allow"] = ", ".join(_READ)
    return answer
