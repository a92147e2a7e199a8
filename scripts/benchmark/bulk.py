"""A server for large bodies: `python -m scripts.benchmark.bulk PORT CERTIFICATE BYTES`.

GET gives that many bytes; the body of a POST is read to its end before the answer.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from contextlib import suppress

import uvloop

_PIECE = bytes(256 * 1024)


async def serve(port: int, certificate: str, size: int) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST"):
                left = size
                while left > 0:
                    left -= len(await reader.read(len(_PIECE)))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size)
                for _ in range(size // len(_PIECE)):
                    writer.write(_PIECE)
                    await writer.drain()
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port, ssl=context) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
