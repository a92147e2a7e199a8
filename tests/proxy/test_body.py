"""The client's body: read once, kept while it is small, and watched for the client's going."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from grok_oauth_proxy.asgi import Message
from grok_oauth_proxy.proxy.body import ClientGone, Keep, RequestBody

pytestmark = pytest.mark.anyio

GONE: Message = {"type": "http.disconnect"}


def part(chunk: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": chunk, "more_body": more}


class Client:
    """Sends messages, and then says nothing until told."""

    def __init__(self, *messages: Message) -> None:
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self.received = 0
        self.heard = asyncio.Event()
        """Everything said so far was received, and more is waited for."""
        self.say(*messages)

    def say(self, *messages: Message) -> None:
        for message in messages:
            self._queue.put_nowait(message)

    async def __call__(self) -> Message:
        if self._queue.empty():
            self.heard.set()
        message = await self._queue.get()
        self.received += 1
        return message


def body(client: Client, *, whole: bytes | None = None, limit: int = 10) -> RequestBody:
    return RequestBody(client, whole=whole, keep=Keep(limit))


async def read(source: RequestBody) -> list[bytes]:
    return [chunk async for chunk in source.stream()]


async def test_no_body() -> None:
    """A request without a body is not waited for, and can be sent again."""
    client = Client()
    source = body(client, whole=b"")
    assert await read(source) == []
    assert (source.count, source.kept_whole, client.received) == (0, True, 0)


@pytest.mark.parametrize(
    ("messages", "chunks"),
    [
        ([part(b"", more=False)], []),
        ([part(b"abc", more=False)], [b"abc"]),
        ([part(b"a"), part(b"b"), part(b"", more=False)], [b"a", b"b"]),
        ([part(b""), part(b"a"), part(b""), part(b"b", more=False)], [b"a", b"b"]),
        ([{"type": "http.request"}], []),
    ],
    ids=["empty", "one", "ended-by-nothing", "with-gaps", "bare-message"],
)
async def test_stream(messages: Iterable[Message], chunks: list[bytes]) -> None:
    """The chunks come as they were sent, and can be sent again the same way."""
    source = body(Client(*messages))
    assert await read(source) == chunks
    assert await read(source) == chunks
    assert source.count == len(b"".join(chunks))
    assert source.kept_whole


@pytest.mark.parametrize(("size", "kept"), [(9, True), (10, True), (11, False), (1000, False)])
async def test_limit(size: int, kept: bool) -> None:
    """A body up to the limit is kept whole; one byte more and nothing of it is, though all goes out."""
    client = Client(part(b"x" * (size - 1)), part(b"y", more=False))
    source = body(client)
    assert b"".join(await read(source)) == b"x" * (size - 1) + b"y"
    assert source.kept_whole is kept
    assert b"".join(await read(source)) == (b"x" * (size - 1) + b"y" if kept else b"")


async def test_room_for_all() -> None:
    """What is kept of all bodies together has its limit, too; what gets no room is sent on, and not kept."""
    keep = Keep(10)
    first = [RequestBody(Client(), whole=b"x" * 10, keep=keep) for _ in range(31)]
    source = RequestBody(Client(part(b"a" * 6), part(b"b" * 4, more=False)), whole=None, keep=keep)
    assert await anext(source.stream()) == b"a" * 6
    late = RequestBody(Client(), whole=b"x" * 5, keep=keep)
    assert (late.kept_whole, await read(late)) == (False, [b"x" * 5])
    assert await read(source) == [b"a" * 6, b"b" * 4]
    assert (source.kept_whole, keep.left) == (True, 0)
    for one in (*first, source, late):
        one.abandon()
        one.abandon()
    assert keep.left == 320


async def test_no_limit_at_all() -> None:
    """With nothing kept, an empty body can still be sent again."""
    source = body(Client(part(b"", more=False)), limit=0)
    assert await read(source) == []
    assert source.kept_whole


async def test_second_attempt_before_the_end() -> None:
    """An attempt that was given up in the middle is followed by one that sends all of it, in order."""
    client = Client(part(b"a"), part(b"b"))
    source = body(client)
    first = source.stream()
    assert [await anext(first), await anext(first)] == [b"a", b"b"]
    client.say(part(b"c"), part(b"d", more=False))
    assert await read(source) == [b"a", b"b", b"c", b"d"]


async def test_cancelled_while_waiting() -> None:
    """An attempt that is cancelled while the client pauses loses nothing of what the client says next."""
    client = Client(part(b"a"))
    source = body(client)
    reading = asyncio.create_task(read(source))
    await client.heard.wait()
    reading.cancel()
    await asyncio.wait({reading})
    client.say(part(b"b", more=False))
    assert await read(source) == [b"a", b"b"]


async def test_gone_in_the_middle() -> None:
    """A client that goes away in the middle of its body is no end of the body."""
    source = body(Client(part(b"a"), GONE))
    stream = source.stream()
    assert await anext(stream) == b"a"
    with pytest.raises(ClientGone):
        await anext(stream)


async def test_abandon() -> None:
    """After the answer has come nothing is kept to be sent again; what still comes goes through."""
    client = Client(part(b"a"), part(b"b", more=False))
    source = body(client)
    stream = source.stream()
    await anext(stream)
    source.abandon()
    assert [chunk async for chunk in stream] == [b"b"]
    assert (source.kept_whole, source.count) == (False, 2)
    assert await read(source) == []


async def test_outgoing_whole() -> None:
    """A body that has come with the head is handed over in one piece, as often as it is asked for."""
    client = Client()
    source = body(client, whole=b"hi")
    assert [source.outgoing(), source.outgoing()] == [b"hi", b"hi"]
    assert (source.count, client.received) == (2, 0)


async def test_outgoing_in_parts() -> None:
    """A body that is still to come is streamed, and waited for by whoever reads it; later it is had whole."""
    client = Client(part(b"a"), part(b"b", more=False))
    source = body(client)
    outgoing = source.outgoing()
    assert client.received == 0
    assert isinstance(outgoing, AsyncIterator)
    assert [chunk async for chunk in outgoing] == [b"a", b"b"]
    assert source.outgoing() == b"ab"


async def test_outgoing_too_large() -> None:
    """A whole body that is more than is kept goes out once."""
    source = body(Client(), whole=b"x" * 11)
    outgoing = source.outgoing()
    assert isinstance(outgoing, AsyncIterator)
    assert b"".join([chunk async for chunk in outgoing]) == b"x" * 11
    assert source.kept_whole is False


async def test_repr_shows_no_content() -> None:
    """Printing a body shows its size, not what it says."""
    source = body(Client(part(b"canary", more=False)))
    await read(source)
    assert repr(source) == "RequestBody(count=6, ended=True)"
