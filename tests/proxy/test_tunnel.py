"""Two connections that carry each other's bytes, over real sockets with small buffers."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from grok_oauth_proxy.proxy.body import ClientGone
from grok_oauth_proxy.proxy.flow import FlowControl
from grok_oauth_proxy.proxy.tunnel import End, Tunnel
from grok_oauth_proxy.proxy.upstream import UpstreamFailure
from tests.harness import PATIENCE

pytestmark = pytest.mark.anyio

SMALL = 8192
BOUND = 10_000_000
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Before(FlowControl):
    """Has a connection until it becomes one end of a tunnel."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.lost.set()


@dataclass
class Far:
    """The other side of one of the connections, and what happens on ours."""

    sock: socket.socket
    before: Before
    end: End

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def fill(self, other: Far, piece: bytes = bytes(SMALL)) -> int:
        """Send until the other side takes no more."""
        count = 0
        while not other.end.full:
            if self.end.count == count:
                await self.send(piece)
                count += len(piece)
                assert count < BOUND
            await asyncio.sleep(0)
        return count

    async def receive(self) -> int:
        """How much comes until the end."""
        count = 0
        while data := await asyncio.get_running_loop().sock_recv(self.sock, 65536):
            count += len(data)
        return count

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.sock.close()


@dataclass
class Talk:
    client: Far
    api: Far
    tunnel: Tunnel
    carrying: asyncio.Task[None] = field(init=False)

    def __post_init__(self) -> None:
        self.carrying = asyncio.create_task(self.tunnel.carry())

    async def over(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.carrying


async def connected(listener: socket.socket, broken: Exception, early: bytes, unsent: bytes) -> Far:
    far = socket.socket()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    far.connect(listener.getsockname())
    far.setblocking(False)
    near, _ = listener.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    transport, before = await asyncio.get_running_loop().connect_accepted_socket(Before, near)
    transport.pause_reading()
    transport.write(unsent)
    return Far(far, before, End(transport, before, early, broken, full=before.full))


@asynccontextmanager
async def talking(
    *, patience: float = 3600, linger: float = PATIENCE, early: bytes = b"", unsent: bytes = b""
) -> AsyncIterator[Talk]:
    """`early`: what the client sent before the switch; `unsent`: what it has not taken of the answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = await connected(listener, ClientGone(), early, unsent)
        api = await connected(listener, UpstreamFailure("truncated", sent=True), b"", b"")
    with client.sock, api.sock:
        talk = Talk(client, api, Tunnel(client.end, api.end, patience=patience, linger=linger))
        yield talk
        talk.carrying.cancel()
        client.sock.close()
        api.sock.close()
        await asyncio.wait([talk.carrying])
        await asyncio.gather(client.before.lost.wait(), api.before.lost.wait())


async def stalled_at(far: Far) -> int:
    """How much is taken of one who sends without end, until nothing moves any more."""
    count = idle = 0
    while idle < 1000 and count < BOUND:
        try:
            count += far.sock.send(bytes(65536))
            idle = 0
        except BlockingIOError:
            idle += 1
            await asyncio.sleep(0)
    return count


async def test_early_bytes_and_an_api_that_does_not_read() -> None:
    """What was sent before the switch counts: the client is not read while the API does not take that."""
    async with talking(early=bytes(250_000)) as talk:
        assert await stalled_at(talk.client) < BOUND
        assert talk.tunnel.count_in == 250_000


async def test_a_client_that_is_full_at_the_switch() -> None:
    """The API is not read while the client has not taken what was written before the switch."""
    async with talking(unsent=bytes(250_000)) as talk:
        assert await stalled_at(talk.api) < BOUND
        assert talk.tunnel.count_out == 0


async def test_reading_goes_on() -> None:
    """All that waited arrives, in order, once it is taken."""
    async with talking(early=b"a" * 250_000) as talk:
        count = await stalled_at(talk.client)
        talk.client.sock.shutdown(socket.SHUT_WR)
        assert await talk.api.receive() == 250_000 + count
        await talk.over()


async def test_silence() -> None:
    """Two sides that say nothing for as long as `patience` are both let go."""
    async with talking(patience=0.05) as talk:
        with pytest.raises(TimeoutError):
            await talk.over()
        assert await talk.client.receive() == await talk.api.receive() == 0


@pytest.mark.parametrize("speaks", ["client", "api"])
async def test_one_who_speaks(speaks: str) -> None:
    """A byte in either direction is a sign of life of both."""
    async with talking(patience=1.0) as talk:
        speaker, listener = (talk.client, talk.api) if speaks == "client" else (talk.api, talk.client)
        for _ in range(12):
            await asyncio.sleep(0.1)
            await speaker.send(b"x")
            assert await asyncio.get_running_loop().sock_recv(listener.sock, 1) == b"x"
        assert not talk.carrying.done()


async def test_half_closed_while_it_waits() -> None:
    """A client that ends while it is not read has all that it sent delivered."""
    async with talking() as talk:
        count = await talk.client.fill(talk.api)
        await talk.client.send(b"unread")
        talk.client.sock.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.6)  # two looks at it
        assert await talk.api.receive() == count + len(b"unread")
        await talk.over()


@pytest.mark.parametrize("who", ["client", "api"])
async def test_reset_while_it_waits(who: str) -> None:
    """A side that breaks while it is not read is let go at once, and what it had sent arrives."""
    async with talking() as talk:
        breaks, full = (talk.client, talk.api) if who == "client" else (talk.api, talk.client)
        count = await breaks.fill(full)
        await breaks.send(b"unread")
        breaks.reset()
        with pytest.raises((ClientGone, UpstreamFailure)) as caught:
            await talk.over()
        assert isinstance(caught.value, ClientGone) == (who == "client")
        assert await full.receive() == count + len(b"unread")


@pytest.mark.parametrize("who", ["client", "api"])
@pytest.mark.parametrize("orderly", [True, False], ids=["closed", "reset"])
async def test_how_it_ends(who: str, orderly: bool) -> None:
    """An end in order is one; a reset is the failure of the side it came from."""
    async with talking() as talk:
        ends, other = (talk.client, talk.api) if who == "client" else (talk.api, talk.client)
        await ends.send(b"last")
        assert await asyncio.get_running_loop().sock_recv(other.sock, 9) == b"last"
        if orderly:
            ends.sock.shutdown(socket.SHUT_WR)
            await talk.over()
        else:
            ends.reset()
            with pytest.raises((ClientGone, UpstreamFailure)) as caught:
                await talk.over()
            assert isinstance(caught.value, ClientGone) == (who == "client")
        assert await other.receive() == 0


@pytest.mark.parametrize("who", ["client", "api"])
async def test_what_is_left_is_not_offered_for_ever(who: str) -> None:
    """A side that does not take what the other has left is let go after `linger` seconds."""
    async with talking(linger=0.05) as talk:
        ends, other = (talk.client, talk.api) if who == "client" else (talk.api, talk.client)
        await ends.send(bytes(60_000))
        ends.sock.shutdown(socket.SHUT_WR)
        await talk.over()
        async with asyncio.timeout(PATIENCE):
            await other.before.lost.wait()
        with suppress(ConnectionError):  # what is left is thrown away by a reset
            assert await other.receive() < 60_000


async def test_what_is_left_is_delivered() -> None:
    """What a side sent before its end arrives, if the other takes it in time."""
    async with talking() as talk:
        await talk.api.send(bytes(60_000))
        talk.api.sock.shutdown(socket.SHUT_WR)
        await talk.over()
        assert await talk.client.receive() == 60_000


async def test_cancelled() -> None:
    """Cancelled, it ends both sides."""
    async with talking() as talk:
        await asyncio.sleep(0)
        talk.carrying.cancel()
        assert await talk.client.receive() == await talk.api.receive() == 0
