"""The real OpenAI SDK understands what the simulator says."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from .harness import NO_CERTIFICATES, Sim


@pytest.fixture
def client(sim: Sim) -> Iterator[openai.OpenAI]:
    with (
        httpx.Client(trust_env=False, verify=NO_CERTIFICATES) as http,
        openai.OpenAI(
            base_url=f"{sim.url}/v1", api_key=sim.login()["access_token"], http_client=http, max_retries=0
        ) as client,
    ):
        yield client


def test_chat(client: openai.OpenAI) -> None:
    """A chat completion parses, with usage."""
    reply = client.chat.completions.create(model="grok-4", messages=[{"role": "user", "content": "hello"}])
    assert "hello" in (reply.choices[0].message.content or "")
    assert reply.usage
    assert reply.usage.total_tokens > 0


def test_chat_stream(client: openai.OpenAI) -> None:
    """A streamed chat parses through the SDK's own accumulator."""
    with client.chat.completions.stream(
        model="grok-4", messages=[{"role": "user", "content": "hello"}]
    ) as stream:
        final = stream.get_final_completion()
    assert "hello" in (final.choices[0].message.content or "")
    assert final.choices[0].finish_reason == "stop"
    assert final.usage


def test_responses(client: openai.OpenAI) -> None:
    """A response parses, can be retrieved, listed and deleted."""
    made = client.responses.create(model="grok-4", input="hello")
    assert "hello" in made.output_text
    assert made.usage
    assert client.responses.retrieve(made.id).output_text == made.output_text
    assert next(iter(client.responses.input_items.list(made.id))).type == "message"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


@pytest.mark.parametrize("style", ["sse=comments", "sse=no-event", "sse=done,crlf,split"])
def test_responses_stream(client: openai.OpenAI, style: str) -> None:
    """A streamed response parses through the SDK's accumulator in every style."""
    with client.responses.stream(model="grok-4", input="hello", extra_headers={"x-sim": style}) as stream:
        final = stream.get_final_response()
    assert "hello" in final.output_text
    assert final.usage


def test_stream_error(client: openai.OpenAI) -> None:
    """An error frame under HTTP 200 surfaces as the SDK's APIError."""
    stream = client.chat.completions.create(
        model="grok-4",
        messages=[{"role": "user", "content": "hello"}],
        stream=True,
        extra_headers={"x-sim": "sse=error-frame"},
    )
    with pytest.raises(openai.APIError, match="internal error"):
        list(stream)


def test_models(client: openai.OpenAI) -> None:
    """The model list and a single model parse."""
    assert "grok-4" in [model.id for model in client.models.list()]
    assert client.models.retrieve("grok-4").owned_by == "xai"


def test_files(client: openai.OpenAI) -> None:
    """A file goes up, is listed, comes down as it was, and is deleted."""
    content = b'{"a": 1}\r\n\x00\xff'
    made = client.files.create(file=("a.jsonl", content), purpose="batch")
    assert made.bytes == len(content)
    assert client.files.content(made.id).content == content
    assert made.id in [file.id for file in client.files.list()]
    assert client.files.delete(made.id).deleted


def test_speech_and_embeddings(client: openai.OpenAI) -> None:
    """Speech is bytes and embeddings are equal in both encodings."""
    speech = client.audio.speech.create(model="tts", voice="alloy", input="hello")
    assert speech.content.startswith(b"ID3")
    packed = client.embeddings.create(model="v1-embedding", input=["a", "b"])
    floats = client.embeddings.create(model="v1-embedding", input=["a", "b"], encoding_format="float")
    assert [e.embedding for e in packed.data] == [e.embedding for e in floats.data]


def test_images_and_completions(client: openai.OpenAI) -> None:
    """Images and the old completions parse."""
    images = client.images.generate(model="grok-2-image", prompt="a rover")
    assert images.data
    assert images.data[0].revised_prompt == "a rover"
    assert "hello" in client.completions.create(model="grok-4", prompt="hello").choices[0].text


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("stale-401", openai.AuthenticationError),
        ("entitlement", openai.PermissionDeniedError),
        ("rate-429", openai.RateLimitError),
        ("cloudflare-html", openai.InternalServerError),
    ],
)
def test_errors(client: openai.OpenAI, kind: str, error: type[openai.APIStatusError]) -> None:
    """Refusals become the SDK's own exceptions."""
    with pytest.raises(error):
        client.models.list(extra_headers={"x-sim": f"reject={kind}"})
