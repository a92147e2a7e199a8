"""The handshakes of a WebSocket (RFC 6455 §4): the client's with us, ours with the API.

Each hop has one of its own, made and checked by the websockets library. No extension is offered to either
side, so that the frames of both hops are the same bytes and go through as they are: text, binary, pings,
pongs, and the closing with its code and reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grok_oauth_proxy.errors import ClientError
from grok_oauth_proxy.proxy.headers import (
    KEY_SUBPROTOCOL,
    Headers,
    connection_options,
    header,
    response_headers,
)
from grok_oauth_proxy.proxy.upstream import UpstreamFailure

if TYPE_CHECKING:
    import websockets

_CLIENT_SECRET: Final = "xai-client-secret."  # noqa: S105 - a prefix, not a secret
_KEY: Final = KEY_SUBPROTOCOL.decode()


def wants_websocket(method: str, version: str, headers: Headers) -> bool:
    """Whether a request asks for a WebSocket and nothing else; it may still be malformed."""
    upgrade = header(headers, b"upgrade")
    return (
        upgrade is not None
        and upgrade.lower() == b"websocket"
        and (method, version) == ("GET", "1.1")
        and b"upgrade" in connection_options(headers)
        and header(headers, b"content-length") in (None, b"0")
        and header(headers, b"transfer-encoding") is None
    )


class Handshake:
    """`headers`: what the request to the API is told beyond the client's own headers.

    `brings_secret`: the client offers a credential of its own as a subprotocol. The proxy's key, which a
    browser offers as one, goes no further. Raises `ClientError`.
    """

    def __init__(self, headers: Headers) -> None:
        # Loaded when the first WebSocket comes: it takes longer than most of the start.
        from websockets.client import ClientProtocol
        from websockets.exceptions import InvalidHandshake
        from websockets.headers import parse_subprotocol
        from websockets.http11 import Request
        from websockets.server import ServerProtocol
        from websockets.uri import parse_uri

        answer = ServerProtocol().accept(Request("/", _as_text(headers)))
        # They may stand on several lines (RFC 6455 §11.3.4).
        offered = b", ".join(value for name, value in headers if name == b"sec-websocket-protocol")
        try:
            offers = parse_subprotocol(offered.decode("latin-1")) if offered else []
        except InvalidHandshake:
            offers, answer.status_code = [], 400
        if header(headers, b"sec-websocket-version") not in (None, b"13"):
            answer.status_code = 426
        if answer.status_code != 101:
            raise ClientError(
                "This is not a valid WebSocket handshake of version 13 (RFC 6455 §4.2.1).",
                code="bad_handshake",
                status=answer.status_code,
            )
        offers = [offer for offer in offers if not offer.startswith(_KEY)]
        self.brings_secret = any(offer.startswith(_CLIENT_SECRET) for offer in offers)
        self._accept = answer.headers["Sec-WebSocket-Accept"].encode()
        self._ours = ClientProtocol(parse_uri("ws://api/"), subprotocols=offers or None)
        asked = self._ours.connect().headers
        self.headers = [
            (name.lower().encode(), value.encode()) for name, value in asked.raw_items() if name != "Host"
        ]

    def answer(self, api: Headers) -> Headers:
        """What the client is told when the API has switched; raises `UpstreamFailure` if it has not."""
        from websockets.exceptions import InvalidHandshake
        from websockets.http11 import Response

        try:
            self._ours.process_response(Response(101, "", _as_text(api)))
        except InvalidHandshake:
            raise UpstreamFailure("invalid_answer", sent=True) from None
        return [
            *[item for item in response_headers(api) if item[0] != b"content-length"],  # RFC 9110 §8.6
            (b"connection", b"Upgrade"),
            (b"upgrade", b"websocket"),
            (b"sec-websocket-accept", self._accept),
        ]


def _as_text(headers: Headers) -> websockets.Headers:
    from websockets.datastructures import Headers as TextHeaders

    return TextHeaders([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])
