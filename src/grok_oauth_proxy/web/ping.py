"""The deep part of a health check: does the API answer us?"""

from __future__ import annotations

import asyncio
from typing import Final

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.errors import CredentialsUnavailable
from grok_oauth_proxy.observe.health import UpstreamPing
from grok_oauth_proxy.proxy.headers import request_headers
from grok_oauth_proxy.proxy.recovery import TokenProvider
from grok_oauth_proxy.proxy.upstream import Request, Upstream, UpstreamFailure

_PATIENCE: Final = 10.0


async def ping_models(tokens: TokenProvider, upstream: Upstream, clock: Clock) -> UpstreamPing:
    """GET /models once, with the current token; costs no quota. Never raises for what the network does."""
    began = clock.monotonic()

    def result(status: int | None, error: str | None) -> UpstreamPing:
        return UpstreamPing(status, round((clock.monotonic() - began) * 1000, 1), error)

    try:
        async with asyncio.timeout(_PATIENCE):
            token = await tokens.get()
            bearer = token.bearer.get_secret_value().encode("ascii")
            headers = request_headers([], [], to=upstream, bearer=bearer)
            answer = await upstream.send(Request("GET", upstream.base_path + b"/models", headers, None))
    except TimeoutError:
        return result(None, "timeout")
    except CredentialsUnavailable as error:
        return result(None, error.code)
    except UpstreamFailure as failure:
        return result(None, failure.kind)
    await answer.aclose()
    return result(answer.status, None)
