"""Who may come in, and who may not spend this user's quota."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grok_oauth_proxy.credentials.client_keys import KeysFile
from grok_oauth_proxy.errors import ClientError
from grok_oauth_proxy.proxy.front_door import FrontDoor
from grok_oauth_proxy.proxy.key_ring import KeyRing

KEY = "key-0123456789abcdef"
Pair = tuple[bytes, bytes]


def door(
    *,
    key: str | None = None,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    bound: str = "127.0.0.1",
) -> FrontDoor:
    ring = KeyRing(KeysFile(Path("/nowhere/keys.json")), lambda _event: None, lambda: 0.0)
    return FrontDoor(api_key=key, ring=ring, allowed_hosts=hosts, allowed_origins=origins, bound_host=bound)


def knock(
    opened: FrontDoor,
    *headers: Pair,
    host: bytes | None = b"127.0.0.1:9996",
    path: bytes = b"/v1/models",
    version: str = "1.1",
    server: tuple[str, int] | None = ("127.0.0.1", 9996),
    scheme: str = "http",
) -> tuple[str, int] | None:
    """The code and status a request is refused with; None when it may come in."""
    named = [] if host is None else [(b"host", host)]
    scope: dict[str, Any] = {
        "headers": [*named, *headers],
        "method": "GET",
        "scheme": scheme,
        "raw_path": path,
        "http_version": version,
        "server": server,
    }
    try:
        opened.admit(scope)
    except ClientError as error:
        return error.code, error.status
    return None


NOT_ALLOWED = ("host_not_allowed", 421)
BAD = ("bad_host", 400)

HOSTS: dict[str, tuple[bytes | None, tuple[str, int] | None]] = {
    "loopback": (b"127.0.0.1:9996", None),
    "without-port": (b"127.0.0.1", None),
    "another-port": (b"127.0.0.1:1", None),
    "whole-loopback-net": (b"127.3.2.1:9996", None),
    "localhost": (b"localhost:9996", None),
    "upper-case": (b"LOCALHOST:9996", None),
    "anchored": (b"localhost.:9996", None),
    "below-localhost": (b"app.localhost:9996", None),
    "ipv6": (b"[::1]:9996", None),
    "ipv6-without-port": (b"[::1]", None),
    "rebound-name": (b"evil.example:9996", NOT_ALLOWED),
    "rebound-address-name": (b"127.0.0.1.evil.example:9996", NOT_ALLOWED),
    "rebound-localhost-name": (b"localhost.evil.example", NOT_ALLOWED),
    "rebound-nip-io": (b"127.0.0.1.nip.io:9996", NOT_ALLOWED),
    "no-suffix-match": (b"notlocalhost:9996", NOT_ALLOWED),
    "another-address": (b"192.168.1.7:9996", NOT_ALLOWED),
    "all-addresses": (b"0.0.0.0:9996", NOT_ALLOWED),
    "short-address": (b"127.1:9996", NOT_ALLOWED),
    "number-address": (b"2130706433", NOT_ALLOWED),
    "another-ipv6": (b"[fe80::1]:9996", NOT_ALLOWED),
    "international": ("localhöst".encode("latin-1"), NOT_ALLOWED),
    "only-a-dot": (b".", NOT_ALLOWED),
    "empty": (b"", BAD),
    "only-a-port": (b":9996", BAD),
    "port-not-a-number": (b"localhost:x", BAD),
    "port-too-long": (b"localhost:123456", BAD),
    "user": (b"localhost@evil.example", BAD),
    "user-and-port": (b"evil.example:80@localhost", BAD),
    "path": (b"localhost/evil", BAD),
    "list": (b"localhost, evil.example", BAD),
    "blank": (b"local host", BAD),
    "open-bracket": (b"[::1", BAD),
    "bare-ipv6": (b"::1", BAD),
    "missing": (None, BAD),
}


@pytest.mark.parametrize(("host", "refused"), HOSTS.values(), ids=HOSTS.keys())
def test_host(host: bytes | None, refused: tuple[str, int] | None) -> None:
    """Only requests that asked for this machine by a name of its own come in: rebinding ends here."""
    assert knock(door(), host=host) == refused


def test_two_hosts() -> None:
    """Two Host headers are refused, though each alone would do."""
    assert knock(door(), (b"host", b"127.0.0.1:9996")) == BAD
    assert knock(door(), (b"host", b"evil.example")) == BAD


def test_old_clients() -> None:
    """HTTP/1.0 may leave the Host out, and what it names counts all the same."""
    assert knock(door(), host=None, version="1.0") is None
    assert knock(door(), host=b"evil.example", version="1.0") == NOT_ALLOWED


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        (b"box.local", None),
        (b"box.local:9996", None),
        (b"BOX.local.:80", None),
        (b"nas:8080", None),
        (b"nas:8081", NOT_ALLOWED),
        (b"nas", NOT_ALLOWED),
        (b"evil.box.local", NOT_ALLOWED),
        (b"box.local.evil.example", NOT_ALLOWED),
    ],
)
def test_allowed_hosts(host: bytes, refused: tuple[str, int] | None) -> None:
    """A name from PROXY_ALLOWED_HOSTS comes in, with any port or with the one that was named."""
    assert knock(door(hosts=("box.local", "nas:8080")), host=host) == refused


def test_the_address_it_is_reached_at() -> None:
    """The address the connection came in on may be asked for, and no other of the network."""
    server = ("192.168.1.7", 9996)
    assert knock(door(), host=b"192.168.1.7:9996", server=server) is None
    assert knock(door(), host=b"192.168.1.8:9996", server=server) == NOT_ALLOWED


FOREIGN = ("origin_not_allowed", 403)
SAME = b"http://127.0.0.1:9996"

ORIGINS: dict[str, tuple[list[Pair], tuple[str, int] | None]] = {
    "no-browser": ([], None),
    "same-origin": ([(b"origin", SAME)], None),
    "same-origin-as-told": ([(b"origin", SAME), (b"sec-fetch-site", b"same-origin")], None),
    "typed-by-the-user": ([(b"sec-fetch-site", b"none")], None),
    "own-page-get": ([(b"sec-fetch-site", b"same-origin")], None),
    "foreign-page": ([(b"origin", b"https://evil.example")], FOREIGN),
    "sandboxed-page": ([(b"origin", b"null")], FOREIGN),
    "empty-origin-cross-site": ([(b"origin", b""), (b"sec-fetch-site", b"cross-site")], FOREIGN),
    "image-of-a-foreign-page": ([(b"sec-fetch-site", b"cross-site")], FOREIGN),
    "another-port": ([(b"sec-fetch-site", b"same-site")], FOREIGN),
    "unknown-site": ([(b"sec-fetch-site", b"elsewhere")], FOREIGN),
    "another-port-by-origin": ([(b"origin", b"http://127.0.0.1:3000")], FOREIGN),
    "another-scheme": ([(b"origin", b"https://127.0.0.1:9996")], FOREIGN),
    "another-name-of-ours": ([(b"origin", b"http://localhost:9996")], FOREIGN),
    "origin-with-path": ([(b"origin", SAME + b"/")], FOREIGN),
    "origin-with-user": ([(b"origin", b"http://127.0.0.1:9996@evil.example")], FOREIGN),
    "extension": ([(b"origin", b"chrome-extension://abc")], FOREIGN),
    "file": ([(b"origin", b"file://")], FOREIGN),
    "not-ascii": ([(b"origin", b"http://\xe9vil")], FOREIGN),
    "second-origin": ([(b"origin", b"https://evil.example"), (b"origin", SAME)], FOREIGN),
}


@pytest.mark.parametrize(("headers", "refused"), ORIGINS.values(), ids=ORIGINS.keys())
@pytest.mark.parametrize("path", [b"/v1/models", b"/health", b"/metrics", b"/"])
def test_origin(headers: list[Pair], refused: tuple[str, int] | None, path: bytes) -> None:
    """A page of another origin gets nothing, neither of the API nor of the proxy's own pages."""
    assert knock(door(), *headers, path=path) == refused


@pytest.mark.parametrize(
    ("origin", "refused"),
    [
        (b"https://app.example", None),
        (b"HTTPS://App.Example", None),
        (b"http://app.example", FOREIGN),
        (b"https://app.example:8443", FOREIGN),
        (b"https://app.example.evil.example", FOREIGN),
        (b"https://evil.example", FOREIGN),
        (b"null", FOREIGN),
    ],
)
def test_allowed_origins(origin: bytes, refused: tuple[str, int] | None) -> None:
    """A page of PROXY_ALLOWED_ORIGINS comes in, by its whole origin."""
    headers = ((b"origin", origin), (b"sec-fetch-site", b"cross-site"))
    assert knock(door(origins=("https://app.example",)), *headers) == refused


@pytest.mark.parametrize(
    ("bound", "server", "host"),
    [
        ("0.0.0.0", ("127.0.0.1", 9996), b"0.0.0.0:9996"),
        ("::", ("::ffff:192.168.1.7", 9996), b"192.168.1.7:9996"),
        ("::", ("::1", 9996), b"[::]:9996"),
        ("proxy.lan", ("192.168.1.7", 9996), b"PROXY.lan:9996"),
    ],
)
def test_the_bound_address(bound: str, server: tuple[str, int], host: bytes) -> None:
    """The address the proxy was told to listen on is one of its names, as is the one it was reached by."""
    assert knock(door(bound=bound), host=host, server=server) is None
    assert knock(door(), host=host) == NOT_ALLOWED


def test_a_rebound_page_is_not_the_same_origin() -> None:
    """A page that rebound its name to this machine is turned away by its Host, whatever its Origin."""
    headers = ((b"origin", b"http://evil.example:9996"), (b"sec-fetch-site", b"same-origin"))
    assert knock(door(), *headers, host=b"evil.example:9996") == NOT_ALLOWED


WRONG = ("invalid_api_key", 401)
OURS = KEY.encode()

KEYS: dict[str, tuple[list[Pair], tuple[str, int] | None]] = {
    "bearer": ([(b"authorization", b"Bearer " + OURS)], None),
    "bearer-lower-case": ([(b"authorization", b"bearer " + OURS)], None),
    "bearer-blanks": ([(b"authorization", b"BEARER   " + OURS + b" ")], None),
    "x-api-key": ([(b"x-api-key", OURS)], None),
    "x-proxy-api-key": ([(b"x-proxy-api-key", OURS)], None),
    "right-beside-wrong": ([(b"authorization", b"Bearer sk-other"), (b"x-proxy-api-key", OURS)], None),
    "wrong-after-right": ([(b"x-api-key", OURS), (b"x-api-key", b"wrong")], None),
    "subprotocol": (
        [(b"sec-websocket-protocol", b"realtime, openai-insecure-api-key." + OURS + b" ,a")],
        None,
    ),
    "wrong-subprotocol": ([(b"sec-websocket-protocol", b"openai-insecure-api-key." + OURS + b"x")], WRONG),
    "another-subprotocol": ([(b"sec-websocket-protocol", OURS)], WRONG),
    "none": ([], WRONG),
    "wrong": ([(b"x-api-key", b"wrong")], WRONG),
    "prefix": ([(b"x-api-key", OURS[:-1])], WRONG),
    "longer": ([(b"x-api-key", OURS + b"x")], WRONG),
    "upper-case": ([(b"x-api-key", OURS.upper())], WRONG),
    "empty": ([(b"x-api-key", b"")], WRONG),
    "empty-bearer": ([(b"authorization", b"Bearer ")], WRONG),
    "no-scheme": ([(b"authorization", OURS)], WRONG),
    "basic": ([(b"authorization", b"Basic " + OURS)], WRONG),
    "another-header": ([(b"api-key", OURS)], WRONG),
    "cookie": ([(b"cookie", b"x-api-key=" + OURS)], WRONG),
    "not-ascii": ([(b"x-api-key", "schlüssel".encode())], WRONG),
    "not-ascii-bearer": ([(b"authorization", b"Bearer \xff\xfe\x80")], WRONG),
    "all-wrong": ([(b"authorization", b"Bearer a"), (b"x-api-key", b"b"), (b"x-proxy-api-key", b"c")], WRONG),
    "in-two-halves": ([(b"x-api-key", OURS[:10]), (b"x-api-key", OURS[10:])], WRONG),
}


@pytest.mark.parametrize(("headers", "refused"), KEYS.values(), ids=KEYS.keys())
def test_key(headers: list[Pair], refused: tuple[str, int] | None) -> None:
    """The key opens the API in three headers or as a subprotocol, and nothing but the whole key does."""
    assert knock(door(key=KEY), *headers) == refused


@pytest.mark.parametrize(("headers", "_"), KEYS.values(), ids=KEYS.keys())
def test_no_key_asked(headers: list[Pair], _: object) -> None:
    """Without PROXY_API_KEY any key will do: clients must send one to somebody."""
    assert knock(door(), *headers) is None


@pytest.mark.parametrize(
    ("path", "on_loopback", "everywhere"),
    [
        (b"/v1/models", WRONG, WRONG),
        (b"/v1", WRONG, WRONG),
        (b"/health", None, WRONG),
        (b"/metrics", None, WRONG),
        (b"/", None, WRONG),
        (b"/v10", None, WRONG),
    ],
)
def test_where_the_key_is_asked(
    path: bytes, on_loopback: tuple[str, int] | None, everywhere: tuple[str, int] | None
) -> None:
    """On loopback the key guards the API; a port open to other machines asks for it everywhere."""
    assert knock(door(key=KEY), path=path) == on_loopback
    assert knock(door(key=KEY, bound="0.0.0.0"), path=path) == everywhere
    assert knock(door(key=KEY, bound="0.0.0.0"), (b"x-api-key", OURS), path=path) is None


def test_the_key_opens_nothing_else() -> None:
    """The right key from a foreign page or for a rebound name stays outside."""
    opened = door(key=KEY)
    assert knock(opened, (b"x-api-key", OURS), (b"origin", b"https://evil.example")) == FOREIGN
    assert knock(opened, (b"x-api-key", OURS), host=b"evil.example") == NOT_ALLOWED


def test_refusals_keep_the_secret() -> None:
    """What is refused is not repeated, and neither is the key."""
    scope: dict[str, Any] = {
        "method": "GET",
        "headers": [(b"host", b"localhost"), (b"x-api-key", b"canary-offered")],
        "raw_path": b"/v1/models",
        "http_version": "1.1",
        "server": ("127.0.0.1", 9996),
    }
    with pytest.raises(ClientError) as caught:
        door(key=KEY).admit(scope)
    assert "canary" not in caught.value.message
    assert KEY not in caught.value.message
    assert caught.value.kind == "authentication_error"
