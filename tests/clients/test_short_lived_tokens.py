"""Two minutes of eight clients with tokens that live for twenty seconds."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import cycle, islice

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.sdk import async_client
from tests.harness import Home, Proxy, provider_store, proxy_running
from tests.sim.harness import Sim, running

CLIENTS = 8
LIFETIME = 20  # seconds
DURATION = 120  # seconds
MODEL = "grok-4"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "good morning"}]
ANSWER = "You said: good morning — it is a pleasure to hear from you."
PACED = {"x-sim": "chunk-delay=0.2"}
SLOW = {"x-sim": "delay=0.4"}


@pytest.fixture
def short_lived() -> Iterator[Sim]:
    with running("--access-lifetime", str(LIFETIME)) as sim:
        yield sim


@pytest.fixture
def proxy(short_lived: Sim, home: Home) -> Iterator[Proxy]:
    home.write_store(provider_store(short_lived.login()))
    with proxy_running(home, short_lived) as proxy:
        yield proxy


async def chat(sdk: AsyncOpenAI) -> None:
    reply = await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, extra_headers=SLOW)
    assert reply.choices[0].message.content == ANSWER


async def stream(sdk: AsyncOpenAI) -> None:
    request = sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, extra_headers=PACED)
    async with await request as chunks:
        deltas = [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]
    assert "".join(deltas) == ANSWER


async def models(sdk: AsyncOpenAI) -> None:
    page = await sdk.models.list(extra_headers=SLOW)
    assert MODEL in [model.id for model in page.data]


Call = Callable[[AsyncOpenAI], Awaitable[None]]
CALLS: tuple[Call, ...] = (chat, stream, models)


async def use(sdk: AsyncOpenAI, first: int, deadline: float) -> Counter[str]:
    """One call after another until the deadline; how many of each were made."""
    made: Counter[str] = Counter()
    calls = islice(cycle(CALLS), first, None)
    while asyncio.get_running_loop().time() < deadline:
        call = next(calls)
        await call(sdk)
        made[call.__name__] += 1
    return made


@pytest.fixture
async def clients(proxy: Proxy) -> AsyncIterator[list[AsyncOpenAI]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(async_client(f"{proxy.url}/v1")) for _ in range(CLIENTS)]


@pytest.mark.anyio
async def test_short_lived_tokens(clients: list[AsyncOpenAI], short_lived: Sim, home: Home) -> None:
    """No request fails while tokens come and go, and refreshes are as many as lifetimes, not as requests."""
    deadline = asyncio.get_running_loop().time() + DURATION
    async with asyncio.TaskGroup() as group:
        users = [group.create_task(use(sdk, number, deadline)) for number, sdk in enumerate(clients)]
    made = sum((user.result() for user in users), Counter[str]())
    assert len(made) == len(CALLS)
    counters = short_lived.counters()
    assert counters["reuses"] == counters["revocations"] == counters["stale_rejections"] == 0
    assert counters["api_requests"] == made.total()
    assert DURATION / LIFETIME - 1 <= counters["refreshes"] <= DURATION / (LIFETIME / 2) + 2 < made.total()
    assert len(home.refresh_tokens()) == 1
