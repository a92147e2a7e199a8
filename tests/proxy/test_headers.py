"""Which headers go in, and which come back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from grok_oauth_proxy.proxy.headers import (
    Headers,
    body_framing,
    connection_options,
    first_values,
    header,
    request_headers,
    response_headers,
    response_trailers,
)

HOST = b"api.x.ai"


@dataclass
class Api:
    host: bytes = HOST
    context: bool = False


API = Api()
CANARY = b"canary-of-the-client"


def sent(*client: tuple[bytes, bytes]) -> Headers:
    headers = list(client)
    return request_headers(headers, body_framing(first_values(headers)), to=API, bearer=b"ours")


def returned(*upstream: tuple[bytes, bytes]) -> Headers:
    return response_headers(list(upstream))


def test_least() -> None:
    """A request without headers gets the host, and the bearer as the last."""
    assert sent() == [(b"host", HOST), (b"authorization", b"Bearer ours")]


CREDENTIALS = [
    b"authorization",
    b"x-api-key",
    b"x-proxy-api-key",
    b"cookie",
    b"cookie2",
    b"proxy-authorization",
]


@pytest.mark.parametrize("name", CREDENTIALS)
def test_credentials_stay(name: bytes) -> None:
    """No credential of the client goes out, however its header is written and however often it is sent."""
    headers = sent((name, CANARY), (b"x-other", b"1"), (name, CANARY))
    assert not any(CANARY in value for _, value in headers)
    assert [value for key, value in headers if key == b"authorization"] == [b"Bearer ours"]
    assert headers[-1] == (b"authorization", b"Bearer ours")


DROPPED = [
    b"connection",
    b"keep-alive",
    b"te",
    b"trailer",
    b"upgrade",
    b"http2-settings",
    b"proxy-connection",
    b"proxy-authenticate",
    b"proxy-authentication-info",
    b"forwarded",
    b"via",
    b"x-real-ip",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-anything",
    b"expect",
    b"host",
]


@pytest.mark.parametrize("name", DROPPED)
def test_not_sent(name: bytes) -> None:
    """What belongs to this hop, or tells about the client's network, ends here."""
    assert not any(CANARY in value for _, value in sent((name, CANARY)))
    assert header(sent((name, CANARY)), b"host") == HOST


KEPT = [
    (b"x-grok-conv-id", b"c1"),
    (b"x-grok-req-id", b"r1"),
    (b"x-grok-session-id", b"s1"),
    (b"x-client-request-id", b"q1"),
    (b"x-idempotency-key", b"i1"),
    (b"idempotency-key", b"i2"),
    (b"content-type", b'multipart/form-data; boundary="a b"'),
    (b"accept", b"text/event-stream"),
    (b"user-agent", b"curl/8"),
    (b"openai-organization", b"org"),
    (b"x-mixed-case", b"Kept As Is"),
    (b"x-bytes", b"\xff\xfe \xc3\xa9"),
    (b"x-twice", b"one"),
    (b"x-twice", b"two"),
    (b"x-empty", b""),
    (b"x-authorization-hint", b"none"),
]

CONTEXT = [(b"traceparent", b"00-1-2-3"), (b"tracestate", b"a=1"), (b"baggage", b"b=2")]


def test_the_rest_goes_through() -> None:
    """Everything else arrives byte for byte, in order, repeated where it was repeated."""
    assert [pair for pair in sent(*KEPT) if pair in KEPT] == KEPT


def test_trace_context() -> None:
    """The client's trace context (W3C) ends here, unless it is asked to go on."""
    assert [name for name, _ in sent(*CONTEXT)] == [b"host", b"authorization"]
    going_on = request_headers(CONTEXT, [], to=replace(API, context=True), bearer=b"ours")
    assert going_on[1:-1] == CONTEXT


@pytest.mark.parametrize(
    ("connection", "gone"),
    [
        ([b"close, X-Secret"], True),
        ([b"x-secret"], True),
        ([b"keep-alive", b"upgrade ,\tX-SECRET "], True),
        ([b"close"], False),
        ([b"x-secret-not"], False),
        ([], False),
    ],
)
def test_named_by_connection(connection: list[bytes], gone: bool) -> None:
    """A header that Connection names ends here too, in both directions."""
    pairs = [(b"connection", value) for value in connection]
    assert (header(sent(*pairs, (b"x-secret", b"1")), b"x-secret") is None) is gone
    assert (header(returned(*pairs, (b"x-secret", b"1")), b"x-secret") is None) is gone


@pytest.mark.parametrize("named", [b"host", b"authorization", b"content-length", b"transfer-encoding"])
def test_connection_cannot_take_ours(named: bytes) -> None:
    """What this proxy sets itself is set whatever Connection says."""
    headers = sent((b"connection", named), (b"content-length", b"5"))
    assert header(headers, b"host") == HOST
    assert header(headers, b"authorization") == b"Bearer ours"
    assert header(headers, b"content-length") == b"5"


def test_codings() -> None:
    """What the client accepts is asked for as it was said; a plain answer replaces all of it."""
    client = [(b"accept-encoding", b"br, GZIP;q=0.5"), (b"x-other", b"1"), (b"accept-encoding", b"zstd")]
    assert [item for item in sent(*client) if item in client] == client
    asked = request_headers(client, [], to=API, bearer=b"ours", plain=True)
    assert [item for item in asked if item[0].lower() == b"accept-encoding"] == [
        (b"accept-encoding", b"identity")
    ]


@pytest.mark.parametrize(
    ("client", "framing"),
    [
        ([], []),
        ([(b"content-length", b"0")], [(b"content-length", b"0")]),
        ([(b"content-length", b"12")], [(b"content-length", b"12")]),
        ([(b"transfer-encoding", b"chunked")], [(b"transfer-encoding", b"chunked")]),
        ([(b"transfer-encoding", b"gzip, chunked")], [(b"transfer-encoding", b"chunked")]),
        (
            [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
            [(b"transfer-encoding", b"chunked")],
        ),
    ],
    ids=["none", "empty", "length", "chunked", "more-codings", "both"],
)
def test_framing(client: Headers, framing: Headers) -> None:
    """A body goes on framed in one way only, chunked when its length is unknown (RFC 9112 §6)."""
    assert body_framing(first_values(client)) == framing
    names = (b"content-length", b"transfer-encoding")
    assert [pair for pair in sent(*client) if pair[0].lower() in names] == framing


RETURNED = [
    (b"content-type", b"text/event-stream"),
    (b"content-length", b"12"),
    (b"content-encoding", b"gzip"),
    (b"x-ratelimit-limit-requests", b"100"),
    (b"x-ratelimit-remaining-tokens", b"99"),
    (b"retry-after", b"7"),
    (b"x-metrics-e2e-ms", b"12"),
    (b"x-request-id", b"theirs"),
    (b"date", b"Thu, 01 Jan 2026 00:00:00 GMT"),
    (b"server", b"cloudflare"),
    (b"www-authenticate", b"Bearer"),
]


def test_what_comes_back() -> None:
    """The API's headers come back byte for byte, its own request id among them."""
    assert returned(*RETURNED) == RETURNED


@pytest.mark.parametrize(
    "name",
    [
        b"alt-svc",
        b"set-cookie",
        b"set-cookie2",
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"upgrade",
    ],
)
def test_not_returned(name: bytes) -> None:
    """Cookies, offers of another port and what belongs to the other hop do not come back."""
    assert not any(CANARY in value for _, value in returned((name, CANARY)))


def test_connection_options() -> None:
    """Options of several Connection headers are put together, in lower case."""
    headers = [(b"connection", b"Close, A"), (b"x", b"b"), (b"connection", b"c")]
    assert connection_options(headers) == {b"close", b"a", b"c"}
    assert connection_options([]) == frozenset()


def test_header() -> None:
    """The first value of a header is found."""
    assert header([(b"b", b"0"), (b"a", b"1"), (b"a", b"2")], b"a") == b"1"
    assert header([(b"b", b"")], b"b") == b""
    assert header([], b"a") is None


def test_trailers() -> None:
    """Behind a body comes what may come there: nothing that is dropped from a head, or frames the body."""
    dropped = (b"set-cookie", b"alt-svc", b"connection", b"transfer-encoding", b"content-length")
    kept = [(b"x-metrics", b"1"), (b"x-metrics", b"2")]
    assert response_trailers([kept[0], *((name, b"x") for name in dropped), kept[1]]) == kept
