"""The whole proxy behind an egress proxy that asks for a login."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from contextlib import AsyncExitStack, ExitStack

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.harness import PATIENCE, Home, proxy_running, write_expired_login
from tests.proxy.egress import Greet, egress, http_proxy, socks_proxy
from tests.sim.harness import Sim

QUESTION = {"model": "grok-4", "stream": True, "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.anyio
@pytest.mark.parametrize(("scheme", "greet"), [("http", http_proxy), ("socks5", socks_proxy)])
async def test_everything_goes_through(own_sim: Sim, home: Home, scheme: str, greet: Greet) -> None:
    """A refresh, an event stream and a WebSocket all go through the egress proxy, with its login."""
    write_expired_login(home, own_sim)
    own_sim.patch(access_lifetime=3600)
    asked: list[str] = []
    async with egress(greet, asked) as port:
        with ExitStack() as stack:
            running = proxy_running(
                home,
                own_sim,
                ALL_PROXY=f"{scheme}://me:p%40ss@127.0.0.1:{port}",
                UPSTREAM_WARM_CONNECTIONS=0,
            )
            proxy = await asyncio.to_thread(stack.enter_context, running)
            await asyncio.to_thread(proxy.err.wait_for, "The access token was refreshed")
            to_the_issuer = len(asked)
            async with httpx.AsyncClient(base_url=proxy.url, trust_env=False, timeout=PATIENCE) as client:
                answer = await client.post("/v1/chat/completions", json=QUESTION)
                assert answer.text.endswith("data: [DONE]\n\n")
            async with connect(proxy.url.replace("http", "ws", 1) + "/v1/realtime", proxy=None) as talk:
                await talk.recv()
                await talk.send(b"there and back")
                assert await talk.recv() == b"there and back"
            assert (
                "p@ss"
                not in "".join(proxy.err.lines) + (await asyncio.to_thread(proxy.http.get, "/health")).text
            )
            await asyncio.to_thread(stack.close)
    assert to_the_issuer >= 1
    assert len(asked) > to_the_issuer
    assert set(asked) == {f"me:p@ss@{own_sim.url.removeprefix('http://')}"}


async def refuses(reader: StreamReader, writer: StreamWriter) -> str:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 4\r\n\r\nno!\n")
    raise ConnectionError


async def hangs_up(reader: StreamReader, _writer: StreamWriter) -> str:
    await reader.readuntil(b"\r\n\r\n")
    raise ConnectionError


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("greet", "told"),
    [(refuses, "egress_refused"), (hangs_up, "egress_refused"), (None, "unreachable")],
    ids=["refuses", "hangs up", "is not there"],
)
async def test_no_way_out(own_sim: Sim, home: Home, greet: Greet | None, told: str) -> None:
    """An egress proxy that leads nowhere is told in plain words, and the login is not in doubt for it."""
    write_expired_login(home, own_sim)
    own_sim.patch(access_lifetime=3600)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(egress(greet or refuses, []))
        if greet is None:
            await stack.aclose()
        with ExitStack() as running:
            proxy = await asyncio.to_thread(
                running.enter_context, proxy_running(home, own_sim, ALL_PROXY=f"http://127.0.0.1:{port}")
            )
            await asyncio.to_thread(proxy.err.wait_for, rf"\[{told}\]")
            answer = await asyncio.to_thread(proxy.http.get, "/v1/models")
            await asyncio.to_thread(running.close)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == told
    assert not [line for line in proxy.err.lines if "bug" in line or "doubt" in line]
