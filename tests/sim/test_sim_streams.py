"""Server-sent events: the order of the frames in every style."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .harness import Sim

CHAT = {"stream": True, "messages": [{"role": "user", "content": "one two"}]}
RESPONSES = {"stream": True, "input": "one two"}


def stream(sim: Sim, path: str, body: dict[str, Any], x_sim: str = "") -> str:
    reply = sim.http.post(f"/v1{path}", json=body, headers=sim.bearer(x_sim=x_sim)).raise_for_status()
    assert reply.headers["content-type"] == "text/event-stream"
    return reply.text


def payloads(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_chat_order(sim: Sim) -> None:
    """Chat: role, reasoning, content, finish_reason, usage with empty choices, [DONE]."""
    text = stream(sim, "/chat/completions", CHAT)
    chunks = payloads(text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    kinds = ["role" if "role" in d else next(iter(d), "") for d in deltas]
    assert list(dict.fromkeys(kinds)) == ["role", "reasoning_content", "content", ""]
    assert kinds == sorted(kinds, key=["role", "reasoning_content", "content", ""].index)
    assert "".join(d.get("content", "") for d in deltas).startswith("You said: one two")
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == kinds.count("content")
    assert text.endswith("data: [DONE]\n\n")


def test_chat_usage_early(sim: Sim) -> None:
    """The older style carries usage on an earlier chunk and has no chunk with empty choices."""
    chunks = payloads(stream(sim, "/chat/completions", CHAT, "sse=usage-early"))
    assert all(chunk["choices"] for chunk in chunks)
    assert chunks[-1]["usage"]["total_tokens"] > 0


def test_responses_order(sim: Sim) -> None:
    """Responses: named events numbered from 0, created first, completed with usage last, no [DONE]."""
    text = stream(sim, "/responses", RESPONSES)
    events = payloads(text)
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (names[0], names[-1]) == ("response.created", "response.completed")
    assert events[-1]["response"]["usage"]["total_tokens"] > 0
    assert "[DONE]" not in text


def test_responses_without_event_lines(sim: Sim) -> None:
    """Event lines may be absent; the data is the same."""
    text = stream(sim, "/responses", RESPONSES, "sse=no-event,done")
    assert "event:" not in text
    assert payloads(text)[-1]["type"] == "response.completed"
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("style", "last"), [("failed", "response.failed"), ("incomplete", "response.incomplete")]
)
def test_responses_other_endings(sim: Sim, style: str, last: str) -> None:
    """A response may fail or stop early."""
    assert payloads(stream(sim, "/responses", RESPONSES, f"sse={style}"))[-1]["type"] == last


def test_ping_has_no_data(sim: Sim) -> None:
    """The ping event comes without a data line."""
    assert "\n\nevent: ping\n\n" in stream(sim, "/responses", RESPONSES, "sse=ping")


@pytest.mark.parametrize(("path", "body"), [("/chat/completions", CHAT), ("/responses", RESPONSES)])
def test_error_frame(sim: Sim, path: str, body: dict[str, Any]) -> None:
    """An error frame under HTTP 200 ends the stream without any terminal event."""
    text = stream(sim, path, body, "sse=error-frame")
    last = payloads(text)[-1]
    assert "error" in last or last["type"] == "error"
    assert "[DONE]" not in text
    assert "response.completed" not in text


@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/messages"])
def test_no_terminal(sim: Sim, path: str) -> None:
    """A stream may end after a delta, cleanly as HTTP goes."""
    text = stream(sim, path, {**CHAT, **RESPONSES}, "sse=no-terminal")
    assert "delta" in text.splitlines()[-2]


def test_no_done(sim: Sim) -> None:
    """Chat may end without [DONE]."""
    assert "[DONE]" not in stream(sim, "/chat/completions", CHAT, "sse=no-done")


def test_crlf_comments_and_split(sim: Sim) -> None:
    """Line ends, comments and odd write boundaries change nothing in the data."""
    text = stream(sim, "/chat/completions", CHAT, "sse=crlf,comments;sse=split")
    assert ": keep-alive\r\n\r\ndata: " in text
    assert text.count("\n") == text.count("\r\n")
    plain = stream(sim, "/chat/completions", CHAT)
    strip = [{**chunk, "id": "", "created": 0} for chunk in payloads(text)]
    assert strip == [{**chunk, "id": "", "created": 0} for chunk in payloads(plain)]


@pytest.mark.parametrize(
    ("path", "first", "last"),
    [
        ("/messages", "event: message_start", '{"type":"message_stop"}'),
        ("/complete", "event: completion", '"stop_reason":"stop_sequence"'),
        ("/completions", 'data: {"id":"cmpl-', "data: [DONE]"),
    ],
)
def test_older_dialects(sim: Sim, path: str, first: str, last: str) -> None:
    """The Anthropic dialects and the old completions stream in their own shapes."""
    text = stream(sim, path, {**CHAT, "prompt": "hi"})
    assert text.startswith(first)
    assert last in text[-200:]


def test_words(sim: Sim) -> None:
    """words=N makes N content deltas."""
    chunks = payloads(stream(sim, "/chat/completions", CHAT, "words=50"))
    assert chunks[-1]["usage"]["completion_tokens"] == 50


def test_chunks_arrive_apart(sim: Sim) -> None:
    """With a delay the first frame is there before the last one is sent."""
    headers = sim.bearer(x_sim="chunk-delay=0.2;words=1")
    with sim.http.stream("POST", "/v1/chat/completions", json=CHAT, headers=headers) as reply:
        pieces = reply.iter_raw()
        first = next(pieces)
        assert b"[DONE]" not in first
        assert sim.counters()["open_requests"] == 1
        assert b"[DONE]" in b"".join(pieces)
    assert sim.counters()["open_requests"] == 0
