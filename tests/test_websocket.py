"""WebSockets through the proxy: the same frames on both sides, the same front door, the same care."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.asyncio.client import connect as async_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol
from websockets.utils import accept_key

from tests.harness import PATIENCE, Home, Proxy, before_bare_api, provider_store, proxy_running
from tests.sim.harness import Sim


@contextmanager
def dialled(
    proxy: Proxy,
    path: str = "/v1/realtime?model=grok-4",
    *protocols: str,
    origin: str | None = None,
    **headers: str,
) -> Iterator[ClientConnection]:
    with connect(
        proxy.url.replace("http", "ws", 1) + path,
        additional_headers={name.replace("_", "-"): value for name, value in headers.items()},
        subprotocols=[Subprotocol(name) for name in protocols] or None,
        origin=Origin(origin) if origin else None,
        proxy=None,
        open_timeout=PATIENCE,
        close_timeout=PATIENCE,
    ) as conversation:
        yield conversation


@pytest.mark.parametrize(
    "path", ["/v1/realtime?model=grok%2D4", "/v1/responses", "/v1/tts?voice=a", "/v1/stt?a=%20b"]
)
def test_frames(shared_proxy: Proxy, path: str) -> None:
    """Text and binary go both ways, under our bearer and the very target that was asked for."""
    with dialled(shared_proxy, path, authorization="Bearer of-the-client", cookie="a=b") as talk:
        greeting = json.loads(talk.recv(PATIENCE))
        assert greeting["target"] == path
        assert ["authorization", "bearer:known"] in greeting["headers"]
        assert not {"cookie", "sec-websocket-extensions"} & {name for name, _ in greeting["headers"]}
        talk.send("Grüße")
        assert json.loads(talk.recv(PATIENCE)) == {"type": "sim.echo", "text": "Grüße"}
        talk.send(bytes(range(256)) * 1000)
        assert talk.recv(PATIENCE) == bytes(range(256)) * 1000


def test_pings(shared_proxy: Proxy) -> None:
    """A ping is answered by the other end."""
    with dialled(shared_proxy) as talk:
        assert talk.ping().wait(PATIENCE)


def test_fragments(shared_proxy: Proxy) -> None:
    """A message in fragments arrives as one."""
    with dialled(shared_proxy) as talk:
        talk.recv(PATIENCE)
        talk.send(["one ", "two ", "three"])
        assert json.loads(talk.recv(PATIENCE))["text"] == "one two three"


def test_the_api_closes(shared_proxy: Proxy) -> None:
    """A closing with its code and reason comes through from the API."""
    with dialled(shared_proxy) as talk:
        talk.recv(PATIENCE)
        talk.send('{"type":"sim.close","code":4001,"reason":"enough"}')
        with pytest.raises(ConnectionClosed) as caught:
            talk.recv(PATIENCE)
    assert caught.value.rcvd
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "enough")


def test_the_client_closes(own_sim: Sim, home: Home) -> None:
    """A closing of the client reaches the API and leaves nothing open; the log tells the bytes."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        with dialled(proxy) as talk:
            talk.recv(PATIENCE)
            assert proxy.metric("proxy_requests_in_flight") == 2  # and this scrape
            talk.close(4002, "that was all")
        assert talk.close_code == 4002
        proxy.err.wait_for(r"GET /v1/realtime 101 \d+ms in=[1-9]\d* out=[1-9]\d* \S+$")
        assert proxy.metric("proxy_requests_in_flight") == 1


def test_subprotocol(shared_proxy: Proxy) -> None:
    """The API chooses among the subprotocols the client offers."""
    with dialled(shared_proxy, "/v1/realtime", "realtime", "other") as talk:
        assert talk.subprotocol == "realtime"


def test_client_secret(shared_proxy: Proxy, shared_sim: Sim) -> None:
    """A client secret that comes as a subprotocol is kept, and our bearer is not sent beside it."""
    secret = f"xai-client-secret.{shared_sim.login()['access_token']}"
    with dialled(shared_proxy, "/v1/realtime", secret) as talk:
        assert talk.subprotocol == secret
        names = [name for name, _ in json.loads(talk.recv(PATIENCE))["headers"]]
        assert "authorization" not in names


def test_bad_client_secret(shared_proxy: Proxy, shared_sim: Sim) -> None:
    """A client secret that is refused costs no refresh: it is not ours."""
    before = shared_sim.counters()["token_requests"]
    with (
        pytest.raises(InvalidStatus) as caught,
        dialled(shared_proxy, "/v1/realtime", "xai-client-secret.bad"),
    ):
        pass
    assert caught.value.response.status_code in (401, 403)
    assert shared_sim.counters()["token_requests"] == before


def test_refused_handshake(shared_proxy: Proxy) -> None:
    """A handshake the API refuses arrives as its HTTP answer."""
    with pytest.raises(InvalidStatus) as caught, dialled(shared_proxy, "/v1/nothing"):
        pass
    assert caught.value.response.status_code == 404
    assert caught.value.response.body == b"Not Found"


def test_stale_token(own_sim: Sim, home: Home) -> None:
    """A token refused as stale, first sent again as it is young, is refreshed and the API redialled."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        own_sim.http.post("/_sim/expire-access").raise_for_status()
        with dialled(proxy) as talk:
            talk.recv(PATIENCE)
        assert own_sim.counters()["refreshes"] == 1
        assert own_sim.counters()["websockets"] == 3


def test_front_door(own_sim: Sim, home: Home) -> None:
    """No foreign page, and nobody without the key, gets a WebSocket."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_API_KEY="key-0123456789abcdef") as proxy:
        for status, headers in ((403, {"origin": "https://evil.example"}), (401, {})):
            with pytest.raises(InvalidStatus) as caught, dialled(proxy, **headers):
                pass
            assert caught.value.response.status_code == status
        assert own_sim.counters()["websockets"] == 0
        with dialled(proxy, x_api_key="key-0123456789abcdef") as talk:
            assert talk.recv(PATIENCE)


def test_a_browsers_key(own_sim: Sim, home: Home) -> None:
    """A page, which can set no header, offers the key as a subprotocol; neither API nor log sees it."""
    home.write_store(provider_store(own_sim.login()))
    key, page = "key-0123456789abcdef", "https://page.example"
    with proxy_running(home, own_sim, PROXY_API_KEY=key, PROXY_ALLOWED_ORIGINS=page) as proxy:
        for offers in (("realtime", f"openai-insecure-api-key.{key}"), (f"openai-insecure-api-key.{key}",)):
            with dialled(proxy, "/v1/realtime", *offers, origin=page) as talk:
                headers = dict(json.loads(talk.recv(PATIENCE))["headers"])
                assert talk.subprotocol == headers.get("sec-websocket-protocol")
                assert talk.subprotocol == ("realtime" if len(offers) == 2 else None)
                assert headers["authorization"] == "bearer:known"
        with (
            pytest.raises(InvalidStatus) as caught,
            dialled(proxy, "/v1/realtime", "realtime", "openai-insecure-api-key.key"),
        ):
            pass
        assert caught.value.response.status_code == 401
        assert proxy.stop() == 0
        assert key not in proxy.err.text()


def test_the_client_vanishes(own_sim: Sim, home: Home) -> None:
    """A client that goes without a closing takes the connection to the API with it."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        with dialled(proxy) as talk:
            talk.recv(PATIENCE)
            talk.socket.shutdown(socket.SHUT_RDWR)
        proxy.err.wait_for("GET /v1/realtime 101")
        assert proxy.metric("proxy_requests_in_flight") == 1


HANDSHAKE = {
    "Host": "127.0.0.1",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Sec-WebSocket-Key", "short"),
        ("Sec-WebSocket-Key", ""),
        ("Sec-WebSocket-Protocol", "a b"),
    ],
)
def test_malformed_handshake(shared_proxy: Proxy, shared_sim: Sim, name: str, value: str) -> None:
    """What is no handshake is refused with an error like our others, and the API is not dialled."""
    before = shared_sim.counters()["websockets"]
    answer = shared_proxy.http.get("/v1/realtime", headers=HANDSHAKE | {name: value})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_handshake")
    assert shared_sim.counters()["websockets"] == before


def test_another_version(shared_proxy: Proxy) -> None:
    """A version that is not spoken here is answered with the one that is (RFC 6455 §4.2.2)."""
    answer = shared_proxy.http.get("/v1/realtime", headers=HANDSHAKE | {"Sec-WebSocket-Version": "8"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (426, "bad_handshake")
    assert answer.headers["sec-websocket-version"] == "13"
    assert answer.headers["upgrade"] == "websocket"
    assert "upgrade" in answer.headers["connection"]


def asking(*lines: str) -> bytes:
    """A request for a WebSocket."""
    own = [f"{name}: {value}" for name, value in HANDSHAKE.items()]
    return "\r\n".join(["GET /v1/realtime HTTP/1.1", *own, *lines, "", ""]).encode()


def switching(asked: bytes, *lines: str) -> bytes:
    """The answer to it."""
    key = re.search(rb"sec-websocket-key: (\S+)", asked)
    assert key
    own = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Accept: {accept_key(key[1].decode())}",
    ]
    return "\r\n".join(["HTTP/1.1 101 Go", *own, *lines, "", ""]).encode()


def read_head(sock: socket.socket) -> bytes:
    """A head, behind which nothing must have come yet."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        more = sock.recv(65536)
        assert more, head
        head += more
    return head


def read_all(sock: socket.socket) -> bytes:
    with closing(sock.makefile("rb")) as stream:
        return stream.read()


@contextmanager
def asked(
    listener: socket.socket, proxy: Proxy, *lines: str
) -> Iterator[tuple[socket.socket, socket.socket, bytes]]:
    """A client that wants a WebSocket, the API's side, and the head that has come there."""
    with proxy.dial() as client:
        client.sendall(asking(*lines))
        api, _ = listener.accept()
        with api:
            api.settimeout(PATIENCE)
            yield client, api, read_head(api)


@contextmanager
def switched(listener: socket.socket, proxy: Proxy) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both sides of an open WebSocket."""
    with asked(listener, proxy) as (client, api, head):
        api.sendall(switching(head))
        read_head(client)
        yield client, api


@contextmanager
def stopped(proxy: Proxy) -> Iterator[None]:
    """The proxy finds all that happens meanwhile at once."""
    proxy.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        proxy.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: no\r\n\r\n",
        b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 Go\r\n\r\n",
    ],
)
def test_api_that_switches_to_something_else(own_sim: Sim, home: Home, answer: bytes) -> None:
    """A switch that is not to the WebSocket that was asked for is no answer, and is counted as such."""
    with before_bare_api(home, own_sim) as (listener, proxy):
        with asked(listener, proxy) as (client, api, _):
            api.sendall(answer)
            assert read_all(client).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert proxy.metric('proxy_upstream_errors_total{kind="invalid_answer"}') == 1
        proxy.err.wait_for(r"no whole answer \[invalid_answer\]")


def test_offers_on_several_lines(own_sim: Sim, home: Home) -> None:
    """Subprotocols are offered on any number of lines, a client secret among them (RFC 6455 §11.3.4)."""
    lines = ("Sec-WebSocket-Protocol: realtime", "Sec-WebSocket-Protocol: xai-client-secret.canary, other")
    with (
        before_bare_api(home, own_sim) as (listener, proxy),
        asked(listener, proxy, *lines) as (client, api, head),
    ):
        assert b"\r\nsec-websocket-protocol: realtime, xai-client-secret.canary, other\r\n" in head
        assert b"authorization" not in head
        api.sendall(switching(head, "Sec-WebSocket-Protocol: other"))
        assert b"\r\nsec-websocket-protocol: other\r\n" in read_head(client)


def test_length_of_a_switch(own_sim: Sim, home: Home) -> None:
    """A 101 has no length, whatever the API says (RFC 9110 §8.6)."""
    with before_bare_api(home, own_sim) as (listener, proxy), asked(listener, proxy) as (client, api, head):
        api.sendall(switching(head, "Content-Length: 5"))
        assert b"content-length" not in read_head(client)
        api.sendall(b"seven..")
        assert client.recv(7) == b"seven.."


def test_the_api_speaks_at_once(own_sim: Sim, home: Home) -> None:
    """What comes with the 101 goes through, however much it is."""
    said = bytes(range(256)) * 400
    with before_bare_api(home, own_sim) as (listener, proxy):
        with asked(listener, proxy) as (client, api, head):
            with stopped(proxy):
                api.sendall(switching(head) + said)
                api.shutdown(socket.SHUT_WR)
            assert read_all(client).partition(b"\r\n\r\n")[2] == said
        proxy.err.wait_for(r"GET /v1/realtime 101 \d+ms in=0 out=102400 \S+$")


def test_early_bytes_and_an_api_that_does_not_read(own_sim: Sim, home: Home) -> None:
    """What a client sends before the switch is not the beginning of more than the buffers hold."""
    bound = 64_000_000
    with before_bare_api(home, own_sim) as (listener, proxy):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        with proxy.dial() as client:
            with stopped(proxy):
                client.sendall(asking() + bytes(250_000))
            api, _ = listener.accept()
            with api:
                api.sendall(switching(read_head(api)))
                read_head(client)
                client.setblocking(False)
                assert flooded(client, proxy, bound) < bound


def flooded(client: socket.socket, proxy: Proxy, bound: int) -> int:
    """How much is taken of a client that does not wait, up to about `bound`."""
    count = idle = 0
    while idle < 100 and count < bound:
        try:
            count += client.send(bytes(262_144))
            idle = 0
        except BlockingIOError:
            proxy.http.get("/health")  # the proxy is not too busy to go on
            idle += 1
    return count


def test_silence(own_sim: Sim, home: Home) -> None:
    """A WebSocket on which neither side has said a byte for UPSTREAM_READ_TIMEOUT seconds is ended."""
    with before_bare_api(home, own_sim, read_timeout=0.5) as (listener, proxy):
        with switched(listener, proxy) as (client, api):
            assert read_all(client) == read_all(api) == b""
        proxy.err.wait_for(r"GET /v1/realtime 101 .* truncated$")
        assert proxy.metric('proxy_upstream_errors_total{kind="timeout"}') == 1


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_endings(own_sim: Sim, home: Home) -> None:
    """The log tells a WebSocket that was ended from one that the API, or the client, broke off."""
    with before_bare_api(home, own_sim) as (listener, proxy):
        with switched(listener, proxy) as (client, api):
            api.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
        proxy.err.wait_for(r"GET /v1/realtime 101 .* req_\w+$")
        with switched(listener, proxy) as (client, api):
            reset(api)
            assert read_all(client) == b""
        proxy.err.wait_for(r"GET /v1/realtime 101 .* truncated$")
        with switched(listener, proxy) as (client, api):
            reset(client)
            assert read_all(api) == b""
        proxy.err.wait_for(r"GET /v1/realtime 101 .* client_gone$")
        assert proxy.metric('proxy_upstream_errors_total{kind="truncated"}') == 1


@pytest.mark.anyio
async def test_nobody_is_hurried(own_sim: Sim, home: Home) -> None:
    """A client that does not read is not read from either, once all buffers are full; later all arrives."""
    home.write_store(provider_store(own_sim.login()))
    size, most, sent, received = 1_000_000, 1000, 0, 0
    enough = asyncio.Event()

    async def send_all(talk: AsyncConnection) -> None:
        nonlocal sent
        while not enough.is_set() and sent < most:
            await talk.send(bytes(size))
            sent += 1
        await talk.send(b"end")

    with proxy_running(home, own_sim) as proxy:
        url = proxy.url.replace("http", "ws", 1) + "/v1/realtime"
        async with async_connect(url, proxy=None) as talk:
            await talk.recv()
            sending = asyncio.create_task(send_all(talk))
            before = -1
            while sent > before:
                before = sent
                for _ in range(100):  # the proxy is not too busy to go on
                    await asyncio.to_thread(proxy.http.get, "/health")
            stalled_at = sent
            enough.set()
            while (message := await talk.recv()) != b"end":
                assert len(message) == size
                received += 1
            await sending
    assert received == sent
    assert 0 < stalled_at < most
