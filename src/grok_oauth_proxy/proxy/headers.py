"""Which headers go in and which come back. Pure: lists of byte pairs in, lists of byte pairs out.

Law: hop-by-hop headers and those `Connection` names end here (RFC 9110 §7.6.1); no credential of the client
goes out; our bearer is set last. Names are in lower case: those who read them from a connection see to that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Protocol

Headers = list[tuple[bytes, bytes]]

KEY_SUBPROTOCOL: Final = b"openai-insecure-api-key."
"""What a browser puts before a key: of all headers of a WebSocket, it lets a page set this one alone."""

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_CREDENTIALS: Final = frozenset(
    {b"authorization", b"api-key", b"x-api-key", b"x-proxy-api-key", b"cookie", b"cookie2"}
)
# What the client offers may hold a key: a handshake adds what may go out.
_OFFERED: Final = frozenset({b"sec-websocket-protocol"})
_FORWARDING: Final = frozenset({b"forwarded", b"x-real-ip", b"via"})
# Set anew for the upstream connection; `expect` was already answered by the server (RFC 9110 §10.1.1).
_REFRAMED: Final = frozenset({b"host", b"content-length", b"expect"})
_NOT_SENT: Final = _HOP_BY_HOP | _CREDENTIALS | _OFFERED | _FORWARDING | _REFRAMED
# They tell whose requests belong together, which the API need not know (W3C Trace Context, Privacy).
_CONTEXT: Final = frozenset({b"traceparent", b"tracestate", b"baggage"})
_DROPPED: Final = {False: _NOT_SENT | _CONTEXT, True: _NOT_SENT}
_CODINGS: Final = frozenset({b"accept-encoding"})
_NONE: Final[frozenset[bytes]] = frozenset()
# alt-svc would send clients to an h3 port that is not ours; cookies belong to nobody here.
_NOT_RETURNED: Final = _HOP_BY_HOP | {b"alt-svc", b"set-cookie", b"set-cookie2"}
# They would come too late for what they say (RFC 9110 §6.5.1).
_NOT_TRAILERS: Final = _NOT_RETURNED | {b"content-length", b"content-encoding", b"content-type"}


class Destination(Protocol):
    """Where requests go: its name, and whether it gets the clients' trace context."""

    host: bytes
    context: bool


def request_headers(
    client: Headers, added: Headers, *, to: Destination, bearer: bytes | None, plain: bool = False
) -> Headers:
    """The client's headers as the API gets them; `added`: the framing of the body, or a handshake.

    `bearer` is None for a WebSocket that brings its own credential. `plain`: ask for an answer without
    content coding, whatever the client accepts.
    """
    dropped = _with(_DROPPED[to.context], connection_options(client))
    if plain:
        dropped |= _CODINGS
    return [
        (b"host", to.host),
        *[item for item in client if item[0] not in dropped and item[0][:12] != b"x-forwarded-"],
        *([(b"accept-encoding", b"identity")] if plain else ()),
        *added,
        *([(b"authorization", b"Bearer " + bearer)] if bearer is not None else ()),
    ]


def response_headers(upstream: Headers) -> Headers:
    """The API's headers as the client gets them."""
    dropped = _with(_NOT_RETURNED, connection_options(upstream))
    return [item for item in upstream if item[0] not in dropped]


def response_trailers(upstream: Headers) -> Headers:
    """What the API sent behind a chunked body, as the client gets it."""
    return [item for item in upstream if item[0] not in _NOT_TRAILERS] if upstream else upstream


def body_framing(first: dict[bytes, bytes]) -> Headers:
    """How the request body is framed, by its `first_values`: length, chunks, or not at all (RFC 9112 §6)."""
    if b"transfer-encoding" in first:
        return [(b"transfer-encoding", b"chunked")]
    length = first.get(b"content-length")
    return [] if length is None else [(b"content-length", length)]


def is_chunked(headers: Headers) -> bool:
    """Whether the one and only transfer coding is chunked (RFC 9112 §6.1)."""
    return [value.strip().lower() for name, value in headers if name == b"transfer-encoding"] == [b"chunked"]


def connection_options(headers: Headers) -> frozenset[bytes]:
    """The header names that `Connection` declares to be for this hop only."""
    values = [value for name, value in headers if name == b"connection"]
    return _options(b",".join(values)) if values else _NONE


@lru_cache(maxsize=64)
def _options(value: bytes) -> frozenset[bytes]:
    return frozenset(option.strip().lower() for option in value.split(b","))


@lru_cache(maxsize=64)
def _with(names: frozenset[bytes], more: frozenset[bytes]) -> frozenset[bytes]:
    return names | more


def subprotocols(value: bytes) -> list[bytes]:
    """The members of a `Sec-WebSocket-Protocol` header."""
    return [name for item in value.split(b",") if (name := item.strip(b" \t"))]


def first_values(headers: Headers) -> dict[bytes, bytes]:
    """The first value of each header."""
    return dict(reversed(headers))


def header(headers: Headers, wanted: bytes) -> bytes | None:
    """The first value of a header, or None."""
    for name, value in headers:
        if name == wanted:
            return value
    return None
