"""The handshakes of a WebSocket (RFC 6455 §4): the client's with us, ours with the API.

Each hop has one of its own, made and checked by the websockets library. No extension is offered to either
side, so that the frames of both hops are the same bytes and go through as they are: text, binary, pings,
pongs, and the closing with its code and reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grok_oauth_proxy.errors import ClientError
from grok_oauth_proxy.proxy.headers import Headers, connection_options, header
from grok_oauth_proxy.proxy.replies import unavailable
from grok_oauth_proxy.proxy.upstream import UpstreamFailure

if TYPE_CHECKING:
    import websockets

_CLIENT_SECRET: Final = b"xai-client-secret."


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

    `brings_secret`: the client sends a credential of its own as a subprotocol. Raises `ClientError`.
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
        offered = header(headers, b"sec-websocket-protocol")
        try:
            subprotocols = parse_subprotocol(offered.decode("latin-1")) if offered else None
        except InvalidHandshake:
            subprotocols, answer.status_code = None, 400
        if answer.status_code != 101:
            raise ClientError(
                "This is not a valid WebSocket handshake (RFC 6455 §4.2.1).",
                code="bad_handshake",
                status=answer.status_code,
            )
        self.brings_secret = offered is not None and _CLIENT_SECRET in offered
        self._accept = answer.headers["Sec-WebSocket-Accept"].encode()
        self._ours = ClientProtocol(parse_uri("ws://api/"), subprotocols=subprotocols)
        asked = self._ours.connect().headers
        names = ("Connection", "Upgrade", "Sec-WebSocket-Version", "Sec-WebSocket-Key")
        self.headers = [(name.lower().encode(), asked[name].encode()) for name in names]

    def answer(self, api: Headers, passed_on: Headers) -> Headers:
        """What the client is told, `passed_on` of it from the API; raises `UpstreamUnavailable`."""
        from websockets.exceptions import InvalidHandshake
        from websockets.http11 import Response

        try:
            self._ours.process_response(Response(101, "", _as_text(api)))
        except InvalidHandshake:
            raise unavailable(UpstreamFailure("invalid_answer", sent=True)) from None
        return [
            *passed_on,
            (b"connection", b"Upgrade"),
            (b"upgrade", b"websocket"),
            (b"sec-websocket-accept", self._accept),
        ]


def _as_text(headers: Headers) -> websockets.Headers:
    from websockets.datastructures import Headers as TextHeaders

    return TextHeaders([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])
