"""LiteLLM's library against the real proxy, as `openai/<model>` with an api_base."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any, TypeVar

import pytest
from openai import AsyncOpenAI, OpenAI

from grok_oauth_proxy.sim.rejections import KINDS
from tests.harness import Proxy, environment, run
from tests.sim.harness import Sim

pytestmark = pytest.mark.filterwarnings(
    # pydantic says so of LiteLLM's own types when a stream is put together.
    "ignore:Item '.*' on TypedDict class '.*' is using the `ReadOnly` qualifier:UserWarning"
)
yaml: Any = importlib.import_module("yaml")  # comes with LiteLLM, without types
SAID = "good morning"
ANSWER = f"You said: {SAID} — it is a pleasure to hear from you."
Fields = dict[str, Any]
Client = TypeVar("Client", OpenAI, AsyncOpenAI)


@pytest.fixture(scope="module")
def library() -> ModuleType:
    """Imported here, because that takes seconds; its price list comes from the package, not the network."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        environment.setenv("LITELLM_MODE", "PRODUCTION")  # it would read a .env file of any folder above
        import litellm
    litellm.suppress_debug_info = True
    # A blocking call takes the loop that is set; without one it makes its own and closes it.
    asyncio.set_event_loop(None)
    return litellm


@pytest.fixture
def litellm(library: ModuleType) -> Iterator[ModuleType]:
    """LiteLLM keeps its clients for good; those of a test end with it."""
    yield library
    for client in _taken(library, OpenAI):
        client.close()


@pytest.fixture
async def async_litellm(library: ModuleType) -> AsyncIterator[ModuleType]:
    """The same for asyncio: connections must be closed on the loop they were opened on."""
    yield library
    for client in _taken(library, AsyncOpenAI):
        await client.close()


def _taken(library: ModuleType, kind: type[Client]) -> list[Client]:
    """LiteLLM's clients of that kind, which it then no longer knows."""
    known = library.in_memory_llm_clients_cache.cache_dict
    keys = [key for key, client in known.items() if isinstance(client, kind)]
    return [known.pop(key) for key in keys]


@pytest.fixture
def fields(shared_proxy: Proxy) -> Fields:
    return {
        "model": "openai/grok-4",
        "api_base": f"{shared_proxy.url}/v1",
        "api_key": "anything",
        "messages": [{"role": "user", "content": SAID}],
        "max_retries": 0,
    }


def check_chunks(chunks: list[Any]) -> None:
    assert len(chunks) > len(ANSWER.split())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_completion(litellm: ModuleType, fields: Fields, shared_sim: Sim) -> None:
    """A completion arrives whole, with its reasoning and its usage, having carried the login's bearer."""
    reply = litellm.completion(**fields)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].message.reasoning_content
    assert reply.usage.completion_tokens == len(ANSWER.split())
    assert ["authorization", "bearer:known"] in shared_sim.requests()[-1]["headers"]


def test_stream(litellm: ModuleType, fields: Fields) -> None:
    """A stream arrives in pieces that join to the answer and end with a finish reason."""
    check_chunks(list(litellm.completion(**fields, stream=True)))


def test_refusal(litellm: ModuleType, fields: Fields) -> None:
    """The account's missing entitlement raises LiteLLM's exception with status 403 and the API's sentence."""
    with pytest.raises(litellm.APIError, match="do not have an active Grok subscription") as caught:
        litellm.completion(**fields, extra_headers={"x-sim": "reject=entitlement"})
    assert caught.value.status_code == KINDS["entitlement"].status


def test_printed_config(litellm: ModuleType, shared_proxy: Proxy) -> None:
    """With what `config litellm` prints, LiteLLM's router sends every Grok model here, by its own name."""
    printed = run(environment(shared_proxy.home), "config", "litellm").stdout
    router = litellm.Router(model_list=yaml.safe_load(printed)["model_list"], num_retries=0)
    for model in ("grok-4", "grok-3-mini"):
        reply = router.completion(model, [{"role": "user", "content": SAID}])
        assert (reply.choices[0].message.content, reply.model) == (ANSWER, model)


@pytest.mark.anyio
async def test_acompletion(async_litellm: ModuleType, fields: Fields) -> None:
    """A completion arrives whole on asyncio."""
    reply = await async_litellm.acompletion(**fields)
    assert reply.choices[0].message.content == ANSWER


@pytest.mark.anyio
async def test_async_stream(async_litellm: ModuleType, fields: Fields) -> None:
    """A stream arrives in pieces on asyncio."""
    check_chunks([chunk async for chunk in await async_litellm.acompletion(**fields, stream=True)])
