"""TLS to the API, over real sockets: who is trusted, what is resumed, and which ends are ends."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import socket
import ssl
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trustme

from grok_oauth_proxy.egress import tls_context
from grok_oauth_proxy.proxy.body import ClientGone
from grok_oauth_proxy.proxy.flow import FlowControl
from grok_oauth_proxy.proxy.tunnel import End, Tunnel
from grok_oauth_proxy.proxy.upstream import Request, UpstreamFailure
from tests.proxy.api import OK, SWITCHING, WHOLE, Api, Script, each, get, outcome, post, rounds, whole

pytestmark = pytest.mark.anyio


def certified(api: Api, name: str = "localhost") -> ssl.SSLContext:
    """A server's side of TLS that `api` trusts, for `name`."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    authority.configure_trust(api.tls)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_session_is_resumed(api: Api, version: ssl.TLSVersion) -> None:
    """A further connection resumes the TLS session of an earlier one."""
    resumed: list[bool] = []

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        resumed.append(writer.get_extra_info("ssl_object").session_reused)
        await each(WHOLE)(reader, writer)

    context = certified(api)
    context.maximum_version = version
    async with api.serving(script, context):
        upstream = api.upstream()
        for _ in range(3):
            await whole(await upstream.send(get()))
            api.wall += 3600  # too long for the connection to be used again
        await upstream.aclose()
    assert resumed == [False, True, True]


def bare(speaking: ssl.SSLSocket | StreamWriter) -> socket.socket:
    """The connection without its TLS; closing it ends nothing."""
    whole = speaking.get_extra_info("socket") if isinstance(speaking, StreamWriter) else speaking
    return socket.socket(fileno=os.dup(whole.fileno()))


def cut(speaking: ssl.SSLSocket | StreamWriter) -> None:
    """A FIN of TCP without a word of TLS; abort() would reset the connection."""
    with bare(speaking) as connection:
        connection.shutdown(socket.SHUT_WR)


def says_last(answer: bytes, *, goodbye: bool) -> Script:
    """Answers, and ends the connection in order or by a cut."""

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if not goodbye:
            cut(writer)
            await reader.read()

    return script


@pytest.mark.parametrize("goodbye", [True, False], ids=["closed", "cut"])
async def test_tls_end(api: Api, goodbye: bool) -> None:
    """Over TLS a body that ends with the connection is whole only if the API said goodbye."""
    async with api.serving(says_last(OK + b"\r\nhalf", goodbye=goodbye), certified(api)):
        assert await outcome(api, get()) == ((200, b"half") if goodbye else "truncated half")


@pytest.mark.parametrize("goodbye", [True, False], ids=["closed", "cut"])
async def test_tls_end_of_a_tunnel(api: Api, goodbye: bool) -> None:
    """Over TLS a tunnel ends in order only if the API said goodbye; what came before arrives either way."""
    near, far = socket.socketpair()
    async with api.serving(says_last(SWITCHING + b"last", goodbye=goodbye), certified(api)):
        upstream, before = api.upstream(), FlowControl()
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: before, near)
        client = End(transport, before, b"", ClientGone(), full=False)
        answer = await upstream.send(get()._replace(upgrade=True))
        carrying = Tunnel(client, answer.switch(), patience=5).carry()
        if goodbye:
            await carrying
        else:
            with pytest.raises(UpstreamFailure, match="truncated"):
                await carrying
        with far:
            assert await asyncio.get_running_loop().run_in_executor(None, far.recv, 9) == b"last"
        await upstream.aclose()


@pytest.mark.parametrize("mistrusted", ["issuer", "name"])
async def test_mistrusted(api: Api, mistrusted: str) -> None:
    """A server that cannot prove to be the API gets no request, and the client an answer of our own."""
    asked: list[bytes] = []

    async def script(reader: StreamReader, _writer: StreamWriter) -> None:
        asked.append(await reader.read())

    context = certified(api, "localhost" if mistrusted == "issuer" else "api.example")
    if mistrusted == "issuer":
        api.tls = tls_context()
    async with api.serving(script, context):
        assert await outcome(api, get()) == "certificate"
    assert not any(asked)


async def test_handshake_that_stalls(api: Api) -> None:
    """A server that accepts and says nothing is given up in time, and nothing is left open."""
    left = asyncio.Event()

    async def silent(reader: StreamReader, _writer: StreamWriter) -> None:
        await reader.read()
        left.set()

    async with api.serving(silent):
        api.url = api.url.replace("http:", "https:")
        upstream = api.upstream(connect_timeout=0.2)
        with pytest.raises(UpstreamFailure) as caught:
            await upstream.send(get())
        assert caught.value.kind == "connect_timeout"
        await asyncio.wait_for(left.wait(), 5)
        await upstream.aclose()


async def chopped(reader: StreamReader, writer: StreamWriter, size: Callable[[], int]) -> None:
    """Pass on what comes in pieces of `size`."""
    while data := await reader.read(65536):
        while data:
            count = size()
            writer.write(data[:count])
            await writer.drain()
            data = data[count:]
    writer.close()


@pytest.mark.parametrize(("largest", "length"), [(3, 1000), (70_000, 2_000_000)])
async def test_pieces(api: Api, largest: int, length: int) -> None:
    """However the network cuts the records, both bodies arrive byte for byte."""
    context, rest = certified(api), random.Random(largest)  # noqa: S311 - the same pieces each time
    sent, given = rest.randbytes(length), rest.randbytes(length)

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(sent)) == sent
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % len(given) + given)
        await writer.drain()

    async def relay(reader: StreamReader, writer: StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("localhost", port)
        size = partial(rest.randint, 1, largest)
        try:
            await asyncio.gather(chopped(reader, far_writer, size), chopped(far_reader, writer, size))
        finally:
            far_writer.close()
            await far_writer.wait_closed()

    async with api.serving(script, context):
        port, far = int(api.url.split(":")[2].split("/")[0]), Api()
        async with far.serving(relay):
            api.url = far.url.replace("http:", "https:")
            framing = [(b"host", b"x"), (b"content-length", str(len(sent)).encode())]
            assert await outcome(api, Request("POST", b"/", framing, sent)) == (200, given)


async def test_garbage_among_records(api: Api) -> None:
    """What is no TLS breaks the answer off; what came before it is delivered."""
    context = certified(api)

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: 9\r\n\r\nhalf")
        await writer.drain()
        with bare(writer) as connection:
            connection.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        await reader.read()

    async with api.serving(script, context):
        assert await outcome(api, get()) == "truncated half"


@contextmanager
def in_a_thread(api: Api, serve: Callable[[ssl.SSLSocket], None]) -> Iterator[None]:
    """An API that takes one connection and is not slowed down by what goes on in the event loop."""
    context = certified(api)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        api.url = f"https://localhost:{listener.getsockname()[1]}/v1"

        def accept() -> None:
            accepted, _ = listener.accept()
            with context.wrap_socket(accepted, server_side=True) as speaking:
                serve(speaking)

        served = thread.submit(accept)
        yield
        served.result(5)


async def test_tls_end_behind_a_whole_answer(api: Api) -> None:
    """What came before an end without goodbye is delivered, though the client was slow to take it."""
    size = 30_000_000

    def serve(speaking: ssl.SSLSocket) -> None:
        speaking.recv(65536)
        speaking.sendall(OK + b"Content-Length: %d\r\n\r\n" % size + bytes(size))

    with in_a_thread(api, serve):
        upstream = api.upstream()
        answer = await upstream.send(get())
        count = 0
        while (chunk := await answer.chunk()) is not None:
            count += len(chunk)
            await rounds(1)  # slower than it comes
        assert count == size
        await upstream.aclose()


@pytest.mark.parametrize("record", [15_500, 16_384, 100_000])
async def test_large_answer(api: Api, record: int) -> None:
    """Many bytes at once all arrive, whatever the size of the records they come in."""
    count = 30_000_000 // record

    def serve(speaking: ssl.SSLSocket) -> None:
        speaking.recv(65536)
        speaking.sendall(OK + b"Content-Length: %d\r\n\r\n" % (count * record))
        for number in range(count):
            speaking.sendall(number.to_bytes(4, "big") * (record // 4))

    with in_a_thread(api, serve):
        body = b"".join(number.to_bytes(4, "big") * (record // 4) for number in range(count))
        assert await asyncio.wait_for(outcome(api, get()), 20) == (200, body)


@pytest.mark.parametrize("goodbye", [True, False], ids=["closed", "cut"])
async def test_end_while_uploading(api: Api, goodbye: bool) -> None:
    """The end of an answer is known at once, though the upload is never read; it is whole after a goodbye."""
    may_end = threading.Event()

    def serve(speaking: ssl.SSLSocket) -> None:
        speaking.recv(65536)
        speaking.sendall(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\n\r\nwhole")
        speaking.settimeout(0.01)
        with suppress(OSError):
            if goodbye:
                speaking.unwrap()
            else:
                cut(speaking)
        may_end.wait(5)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)

    with in_a_thread(api, serve):
        sent = outcome(api, post(endless(), (b"transfer-encoding", b"chunked")))
        try:
            expected = (413, b"whole") if goodbye else "truncated whole"
            assert await asyncio.wait_for(sent, 4) == expected
        finally:
            may_end.set()


async def test_goodbye_while_idle(api: Api) -> None:
    """A connection whose server says goodbye while it is idle takes no further request."""
    context, gone = certified(api), asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)
        writer.close()
        await reader.read()
        gone.set()

    async with api.serving(script, context):
        upstream = api.upstream()
        assert await whole(await upstream.send(get())) == b"hi"
        await asyncio.wait_for(gone.wait(), 5)
        await rounds(1)
        assert await whole(await upstream.send(get())) == b"hi"
        assert api.connections == 2
        await upstream.aclose()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells it like this")
@pytest.mark.parametrize("tickets", [2, 0], ids=["resumed", "never resumed"])
async def test_closed_connections_leave_nothing(api: Api, tickets: int) -> None:
    """Hundreds of connections later, no more memory is held than after the first."""
    context = certified(api)
    context.num_tickets = tickets

    async def connect(times: int) -> int:
        for _ in range(times):
            await whole(await upstream.send(get()))
            api.wall += 3600  # too long for the connection to be used again
        gc.collect()
        return resident()

    async with api.serving(each(WHOLE), context):
        upstream = api.upstream()
        before = await connect(200)
        assert await connect(500) - before < 1_000_000  # a session alone would be 3.3 MB
        await upstream.aclose()


class MallInfo(ctypes.Structure):
    """What malloc tells of itself (glibc, mallinfo2)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks mapped usmblks fsmblks used fordblks keepcost".split()  # noqa: SIM905
    )


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc tells it like this")
async def test_large_bodies_leave_nothing(api: Api) -> None:
    """Connections that carried large bodies, both ways, are as small as before when they are idle."""
    context, size, count = certified(api), 4_000_000, 10
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallInfo

    def allocated() -> int:
        gc.collect()
        said = mallinfo()
        return int(said.used + said.mapped)

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            for _ in range(length // 1000):
                await reader.readexactly(1000)
            writer.write(OK + b"Content-Length: %d\r\n\r\n" % length)
            for _ in range(length // 1000):  # or the server's side would grow
                writer.write(bytes(1000))
                await writer.drain()

    async def exchange(length: int) -> None:
        framing = [(b"host", b"x"), (b"content-length", str(length).encode())]
        answer = await upstream.send(Request("POST", b"/", framing, bytes(length)))
        assert len(await whole(answer)) == length

    async with api.serving(script, context):
        upstream = api.upstream()
        await asyncio.gather(*(exchange(1000) for _ in range(count)))
        before = allocated()
        for _ in range(count):
            await exchange(size)
        await asyncio.gather(*(exchange(size) for _ in range(count)))
        await asyncio.gather(*(exchange(1000) for _ in range(count)))
        assert api.connections == count
        assert allocated() - before < count * 1_000_000  # the server's side, of asyncio, grows to half of it
        await upstream.aclose()
