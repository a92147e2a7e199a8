"""Connections to the API: HTTP/1.1 over TLS on asyncio, with a pool, and egress proxies."""

from grok_oauth_proxy.proxy.upstream.answer import Answer
from grok_oauth_proxy.proxy.upstream.message import Request, UpstreamFailure
from grok_oauth_proxy.proxy.upstream.pool import Api, Upstream

__all__ = ["Answer", "Api", "Request", "Upstream", "UpstreamFailure"]
