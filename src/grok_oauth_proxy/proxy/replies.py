"""Answers of our own: OpenAI-shaped errors, and the request id every answer carries."""

from __future__ import annotations

import http
import json
import os
from email.utils import formatdate
from typing import Final

from grok_oauth_proxy.asgi import Send
from grok_oauth_proxy.errors import ClientError, ProxyError, UpstreamUnavailable
from grok_oauth_proxy.proxy.headers import Headers
from grok_oauth_proxy.proxy.upstream import UpstreamFailure

OURS_ALONE: Final[Headers] = [
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
"""Every answer of our own says that it is no page to be shown, framed, kept or read as something else.

A page of PROXY_ALLOWED_ORIGINS asks in the mode `cors`, which the third does not concern (Fetch standard).
"""

_NO_ANSWER: Final = (
    "The Grok API could not be reached or broke off before it answered. Check the network, HTTPS_PROXY "
    "and https://status.x.ai, then try again."
)
_WAY_OUT: Final = {
    "certificate": (
        "What answers for the Grok API has a certificate that this machine does not trust. If your network "
        "inspects TLS, name its authority's certificate in SSL_CERT_FILE and restart the proxy."
    ),
    "egress_refused": (
        "The egress proxy does not let requests through to the Grok API. Correct HTTPS_PROXY or ALL_PROXY "
        "and the login in it, and restart the proxy."
    ),
}


_ID_LENGTH: Final = 24
_IDS_AT_ONCE: Final = 256
"""Asking the system for chance takes a twentieth of a request's time, for one as for many."""
_request_ids: list[str] = []


def new_request_id() -> str:
    """Names a request: 96 bits that nobody can guess, in no order."""
    if not _request_ids:
        digits = os.urandom(_IDS_AT_ONCE * _ID_LENGTH // 2).hex()
        _request_ids.extend(f"req_{digits[at : at + _ID_LENGTH]}" for at in range(0, len(digits), _ID_LENGTH))
    return _request_ids.pop()


def error_body(error: ProxyError) -> bytes:
    """`{"error": {"message", "type", "code", "param"}}`, the shape OpenAI clients know."""
    fields = {"message": error.message, "type": error.kind, "code": error.code, "param": None}
    return json.dumps({"error": fields}).encode() + b"\n"


def error_headers(error: ProxyError, body: bytes, request_id: str) -> Headers:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"date", formatdate(usegmt=True).encode()),
        (b"x-request-id", request_id.encode()),
        *OURS_ALONE,
    ]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.code == "body_not_resendable":
        # The OpenAI SDKs try again by themselves when told so.
        headers.append((b"x-should-retry", b"true"))
    if error.status == http.HTTPStatus.UPGRADE_REQUIRED:
        # What would be understood (RFC 6455 §4.2.2); `Upgrade` needs `Connection` (RFC 9110 §7.8).
        headers += [
            (b"connection", b"upgrade"),
            (b"upgrade", b"websocket"),
            (b"sec-websocket-version", b"13"),
        ]
    return headers


async def send_error(send: Send, error: ProxyError, request_id: str) -> int:
    """Answer with `error` and return the bytes of its body; nothing may have been sent before."""
    body = error_body(error)
    headers = error_headers(error, body, request_id)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    return len(body)


def unavailable(failure: UpstreamFailure) -> ProxyError:
    """What a client is told when there is no answer to deliver."""
    if failure.kind == "bad_request":
        return ClientError("The request cannot be sent on: it is not valid HTTP.", code="bad_request")
    if failure.kind in ("timeout", "connect_timeout"):
        return UpstreamUnavailable(
            "The Grok API did not answer in time. Try again; UPSTREAM_CONNECT_TIMEOUT and "
            "UPSTREAM_READ_TIMEOUT set how long to wait.",
            code=f"upstream_{failure.kind}",
            status=504,
        )
    return UpstreamUnavailable(
        _WAY_OUT.get(failure.kind, _NO_ANSWER),
        code=f"upstream_{failure.kind}",
    )


def not_resendable(limit: int) -> ClientError:
    """What a client is told when a refused upload of more than `limit` bytes is gone."""
    return ClientError(
        f"The API refused the access token while a body of more than {limit} bytes was being sent, too large "
        "to be kept and sent again. Send the request once more in a moment, or raise REPLAY_BODY_LIMIT.",
        code="body_not_resendable",
        status=413,
    )
