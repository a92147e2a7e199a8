"""A relay that makes the way to a server 40 ms long: `python -m scripts.benchmark.relay LISTEN TO`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

ONE_WAY = 0.02


async def relay(listen: int, to: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", to)
        # The handshake of TCP took no time on loopback; here it takes its round trip.
        await asyncio.sleep(2 * ONE_WAY)
        with suppress(ConnectionError):
            await asyncio.gather(_delayed(reader, back), _delayed(there, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", listen) as server:
        await server.serve_forever()


async def _delayed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while data := await reader.read(65536):
        loop.call_later(ONE_WAY, writer.write, data)
    loop.call_later(ONE_WAY, writer.close)


if __name__ == "__main__":
    asyncio.run(relay(int(sys.argv[1]), int(sys.argv[2])))
