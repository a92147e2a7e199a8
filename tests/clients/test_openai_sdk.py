"""The openai SDK, sync and async, against the real proxy."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam
from openai.types.responses import Response, ResponseStreamEvent

from grok_oauth_proxy.sim.media import audio_bytes
from grok_oauth_proxy.sim.rejections import KINDS
from tests.clients.sdk import async_client, sync_client
from tests.harness import Home, Proxy, provider_store, proxy_running
from tests.sim.harness import Sim

MODEL = "grok-4"
SAID = "good morning"
ANSWER = f"You said: {SAID} — it is a pleasure to hear from you."
WORDS = len(ANSWER.split())
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": SAID}]
UPLOAD = hashlib.shake_256(b"upload").digest(300_000)
PROXY_KEY = "a-key-of-the-proxy-itself"


@pytest.fixture
def sdk(shared_proxy: Proxy) -> Iterator[OpenAI]:
    with sync_client(f"{shared_proxy.url}/v1") as client:
        yield client


@pytest.fixture
async def async_sdk(shared_proxy: Proxy) -> AsyncIterator[AsyncOpenAI]:
    async with async_client(f"{shared_proxy.url}/v1") as client:
        yield client


def check_chat(completion: ChatCompletion) -> None:
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (2, WORDS)


def check_chunks(chunks: Sequence[ChatCompletionChunk]) -> None:
    *talking, ending, usage = chunks
    deltas = [chunk.choices[0].delta for chunk in talking]
    assert deltas[0].role == "assistant"
    assert [delta.content for delta in deltas if delta.content] == [
        f"{word} " if number < WORDS else word for number, word in enumerate(ANSWER.split(), 1)
    ]
    assert ending.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage
    assert usage.usage.total_tokens == 2 + WORDS


def check_response(response: Response) -> None:
    assert (response.status, response.output_text) == ("completed", ANSWER)
    assert response.usage
    assert (response.usage.input_tokens, response.usage.output_tokens) == (2, WORDS)


def check_events(events: Sequence[ResponseStreamEvent]) -> None:
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * WORDS,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert events[-1].type == "response.completed"
    check_response(events[-1].response)


def check_embeddings(reply: CreateEmbeddingResponse) -> None:
    expected = [[byte / 256 for byte in hashlib.sha256(text).digest()[:8]] for text in (b"one", b"two")]
    assert [item.embedding for item in reply.data] == expected


def test_chat(sdk: OpenAI, shared_sim: Sim) -> None:
    """A chat completion arrives whole, and the SDK's own key never reaches the API."""
    check_chat(sdk.chat.completions.create(model=MODEL, messages=MESSAGES))
    sent = [value for name, value in shared_sim.requests()[-1]["headers"] if name == "authorization"]
    assert sent == ["bearer:known"]


def test_chat_stream(sdk: OpenAI) -> None:
    """A chat stream arrives chunk by chunk: role, words, finish reason, usage."""
    with sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
        check_chunks(list(stream))


def test_response(sdk: OpenAI) -> None:
    """A response arrives whole and can be fetched again under its id."""
    made = sdk.responses.create(model=MODEL, input=SAID)
    check_response(made)
    check_response(sdk.responses.retrieve(made.id))


def test_response_stream(sdk: OpenAI) -> None:
    """The events of a response arrive complete and in order, up to response.completed."""
    with sdk.responses.create(model=MODEL, input=SAID, stream=True) as stream:
        check_events(list(stream))


def test_models(sdk: OpenAI) -> None:
    """The model list and a single model arrive."""
    assert MODEL in [model.id for model in sdk.models.list()]
    assert sdk.models.retrieve(MODEL).owned_by == "xai"


def test_files(sdk: OpenAI) -> None:
    """A file uploaded as multipart comes back byte for byte."""
    file = sdk.files.create(file=("upload.bin", UPLOAD), purpose="assistants")
    assert (file.bytes, file.filename, file.purpose) == (len(UPLOAD), "upload.bin", "assistants")
    assert sdk.files.content(file.id).content == UPLOAD


def test_speech(sdk: OpenAI) -> None:
    """Audio arrives byte for byte, at once and streamed."""
    speech = sdk.audio.speech.create(model="grok-tts", voice="alloy", input=SAID)
    assert speech.content == audio_bytes(SAID)
    streamed = sdk.audio.speech.with_streaming_response
    with streamed.create(model="grok-tts", voice="alloy", input=SAID) as reply:
        assert b"".join(reply.iter_bytes()) == audio_bytes(SAID)


def test_embeddings(sdk: OpenAI) -> None:
    """Vectors arrive with the very numbers the API gave."""
    check_embeddings(sdk.embeddings.create(model="v1-embedding", input=["one", "two"]))


@pytest.mark.anyio
async def test_async_chat(async_sdk: AsyncOpenAI) -> None:
    """A chat completion arrives whole."""
    check_chat(await async_sdk.chat.completions.create(model=MODEL, messages=MESSAGES))


@pytest.mark.anyio
async def test_async_chat_stream(async_sdk: AsyncOpenAI) -> None:
    """A chat stream arrives chunk by chunk: role, words, finish reason, usage."""
    async with await async_sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
        check_chunks([chunk async for chunk in stream])


@pytest.mark.anyio
async def test_async_response(async_sdk: AsyncOpenAI) -> None:
    """A response arrives whole and can be fetched again under its id."""
    made = await async_sdk.responses.create(model=MODEL, input=SAID)
    check_response(made)
    check_response(await async_sdk.responses.retrieve(made.id))


@pytest.mark.anyio
async def test_async_response_stream(async_sdk: AsyncOpenAI) -> None:
    """The events of a response arrive complete and in order, up to response.completed."""
    async with await async_sdk.responses.create(model=MODEL, input=SAID, stream=True) as stream:
        check_events([event async for event in stream])


@pytest.mark.anyio
async def test_async_models(async_sdk: AsyncOpenAI) -> None:
    """The model list and a single model arrive."""
    assert MODEL in [model.id async for model in async_sdk.models.list()]
    assert (await async_sdk.models.retrieve(MODEL)).owned_by == "xai"


@pytest.mark.anyio
async def test_async_files(async_sdk: AsyncOpenAI) -> None:
    """A file uploaded as multipart comes back byte for byte."""
    file = await async_sdk.files.create(file=("upload.bin", UPLOAD), purpose="assistants")
    assert (file.bytes, file.filename, file.purpose) == (len(UPLOAD), "upload.bin", "assistants")
    assert (await async_sdk.files.content(file.id)).content == UPLOAD


@pytest.mark.anyio
async def test_async_speech(async_sdk: AsyncOpenAI) -> None:
    """Audio arrives byte for byte, at once and streamed."""
    speech = await async_sdk.audio.speech.create(model="grok-tts", voice="alloy", input=SAID)
    assert speech.content == audio_bytes(SAID)
    streamed = async_sdk.audio.speech.with_streaming_response
    async with streamed.create(model="grok-tts", voice="alloy", input=SAID) as reply:
        assert b"".join([piece async for piece in reply.iter_bytes()]) == audio_bytes(SAID)


@pytest.mark.anyio
async def test_async_embeddings(async_sdk: AsyncOpenAI) -> None:
    """Vectors arrive with the very numbers the API gave."""
    check_embeddings(await async_sdk.embeddings.create(model="v1-embedding", input=["one", "two"]))


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("entitlement", openai.PermissionDeniedError),
        ("content", openai.PermissionDeniedError),
        ("quota-429", openai.RateLimitError),
        ("quota-402", openai.APIStatusError),
        ("plain-text", openai.BadRequestError),
    ],
)
def test_refusals_of_the_api(
    sdk: OpenAI, shared_sim: Sim, kind: str, error: type[openai.APIStatusError]
) -> None:
    """A refusal raises the SDK's exception for its status with the API's body, and costs no refresh."""
    before = shared_sim.counters()["refreshes"]
    with pytest.raises(error) as caught:
        sdk.chat.completions.create(model=MODEL, messages=MESSAGES, extra_headers={"x-sim": f"reject={kind}"})
    assert caught.value.status_code == KINDS[kind].status
    assert caught.value.response.content == KINDS[kind].body
    assert shared_sim.counters()["refreshes"] == before


@pytest.mark.anyio
async def test_async_entitlement(async_sdk: AsyncOpenAI) -> None:
    """The account's missing entitlement raises PermissionDeniedError with the API's body."""
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await async_sdk.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, extra_headers={"x-sim": "reject=entitlement"}
        )
    assert caught.value.response.content == KINDS["entitlement"].body


@pytest.mark.parametrize(("suffix", "code"), [("", "not_found"), ("/v1/v1", "doubled_prefix")])
def test_wrong_base_url(shared_proxy: Proxy, shared_sim: Sim, suffix: str, code: str) -> None:
    """A base URL with no or two /v1 raises NotFoundError with our code, and the API is not asked."""
    before = shared_sim.counters()["api_requests"]
    with sync_client(shared_proxy.url + suffix) as sdk, pytest.raises(openai.NotFoundError) as caught:
        sdk.models.list()
    assert (caught.value.code, caught.value.type) == (code, "invalid_request_error")
    assert shared_sim.counters()["api_requests"] == before


def test_proxy_key(shared_sim: Sim, home: Home) -> None:
    """With PROXY_API_KEY a wrong key raises AuthenticationError with our code, and the right one works."""
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(home, shared_sim, PROXY_API_KEY=PROXY_KEY) as proxy:
        with (
            sync_client(f"{proxy.url}/v1", "a-wrong-key") as sdk,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            sdk.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "authentication_error")
        with sync_client(f"{proxy.url}/v1", PROXY_KEY) as sdk:
            check_chat(sdk.chat.completions.create(model=MODEL, messages=MESSAGES))


def test_truncated_stream(sdk: OpenAI) -> None:
    """A stream that breaks off at the API raises here, too: half an answer never passes for a whole one."""
    stream = sdk.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_headers={"x-sim": "cut=body"}
    )
    with stream:
        assert next(stream).choices[0].delta.role == "assistant"
        with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
            list(stream)
