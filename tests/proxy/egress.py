"""Egress proxies that ask for a login: HTTP CONNECT and SOCKS5."""

from __future__ import annotations

import asyncio
import base64
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.proxy.api import Api

Greet = Callable[[StreamReader, StreamWriter], Awaitable[str]]


@asynccontextmanager
async def egress(greet: Greet, asked: list[str]) -> AsyncIterator[int]:
    """A proxy on the port it yields; `asked` gets the login and the target of each connection."""
    proxy = Api()

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        asked.append(await greet(reader, writer))
        await tunnel(reader, writer, int(asked[-1].rsplit(":", 1)[1]))

    async with proxy.serving(serve):
        yield int(proxy.url.removesuffix("/v1").rsplit(":", 1)[1])


async def pump(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def tunnel(reader: StreamReader, writer: StreamWriter, port: int) -> None:
    to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))
    finally:
        to_writer.close()


async def http_proxy(reader: StreamReader, writer: StreamWriter) -> str:
    """Takes a CONNECT; what it asked for, and with which login."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    target = head.split(" ")[1]
    login = next(line for line in head.splitlines() if line.lower().startswith("proxy-authorization"))
    for piece in (b"HTTP/1.1 2", b"00 Connected\r\nVia: 1.1 x", b"\r\n\r", b"\n"):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)  # so that each travels by itself
    return f"{base64.b64decode(login.split(' ')[-1]).decode()}@{target}"


async def socks_proxy(reader: StreamReader, writer: StreamWriter) -> str:
    """Takes a SOCKS5 connect (RFC 1928, RFC 1929); what it asked for, and with which login."""
    _, count = await reader.readexactly(2)
    assert 2 in await reader.readexactly(count)
    writer.write(b"\x05\x02")
    _, length = await reader.readexactly(2)
    user = await reader.readexactly(length)
    password = await reader.readexactly((await reader.readexactly(1))[0])
    writer.write(b"\x01\x00")
    kind = (await reader.readexactly(4))[3]
    if kind == 3:  # a name
        host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
    else:
        host = socket.inet_ntoa(await reader.readexactly(4))
    port = int.from_bytes(await reader.readexactly(2))
    writer.write(b"\x05\x00\x00\x01" + bytes(6))
    return f"{user.decode()}:{password.decode()}@{host}:{port}"
