"""A bare probe: two asyncio protocols on httptools, without a token, a log, metrics or checks."""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import cast

import httptools
import uvloop

IDLE: list[Api] = []


class Api(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.parser = cast(asyncio.Transport, transport), httptools.HttpResponseParser(self)

    def ask(self, client: Client, request: bytes) -> None:
        self.client = client
        self.head: list[bytes] = []
        self.body: list[bytes] = []
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head.append(b"%b: %b\r\n" % (name, value))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        IDLE.append(self)
        head = [b"HTTP/1.1 %d OK\r\n" % self.parser.get_status_code(), *self.head, b"\r\n"]
        self.client.transport.write(b"".join(head + self.body))


class Client(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.parser = cast(asyncio.Transport, transport), httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.lines: list[bytes] = []
        self.body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.lines.append(b"POST %b HTTP/1.1\r\n" % url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() != b"authorization":
            self.lines.append(b"%b: %b\r\n" % (name, value))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        request = b"".join([*self.lines, b"Authorization: Bearer x\r\n\r\n", *self.body])
        if IDLE:
            IDLE.pop().ask(self, request)
        else:
            self.dialing = asyncio.ensure_future(self.dial(request))

    async def dial(self, request: bytes) -> None:
        host, port = os.environ["UPSTREAM"].removeprefix("https://").split(":")
        loop, tls = asyncio.get_running_loop(), ssl.create_default_context()
        _, api = await loop.create_connection(Api, host, int(port), ssl=tls)
        api.ask(self, request)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()


uvloop.run(main())
