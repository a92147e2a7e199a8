"""Server-sent events in every dialect the API speaks. A frame is one bytes object, blank line included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from grok_oauth_proxy.sim.reply import encode
from grok_oauth_proxy.sim.sentences import THOUGHTS, Answer

FINGERPRINT = "fp_simulated"
DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
FAILURE = "The model met an internal error."
Json = dict[str, object]
Styles = frozenset[str]


def data(value: object) -> bytes:
    """A frame without an event name."""
    return b"data: " + encode(value) + b"\n\n"


def named(value: Json) -> bytes:
    """A frame whose event name is the value's type."""
    return b"event: " + str(value["type"]).encode() + b"\n" + data(value)


def styled(frames: Iterable[bytes], styles: Styles) -> Iterator[bytes]:
    """Frames with the line ends and comments asked for."""
    for frame in frames:
        for part in (COMMENT, frame) if "comments" in styles else (frame,):
            yield part.replace(b"\n", b"\r\n") if "crlf" in styles else part


def halfway(words: list[str], styles: Styles) -> list[str]:
    """The deltas that get out before an error frame, or all of them."""
    return words[: len(words) // 2] if "error-frame" in styles else words


def chat_usage(made: Answer) -> Json:
    """Usage as the chat endpoint counts it."""
    return {
        "prompt_tokens": made.prompt_tokens,
        "completion_tokens": made.completion_tokens,
        "total_tokens": made.total_tokens,
        "prompt_tokens_details": {
            "text_tokens": made.prompt_tokens,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": made.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "cost_in_usd_ticks": made.total_tokens * 1000,
        "num_sources_used": 0,
    }


def chat(made: Answer, styles: Styles) -> Iterator[bytes]:
    """role, reasoning_content, content, finish_reason, usage with empty choices, [DONE]."""
    return styled(_chat(made, styles), styles)


def _chat(made: Answer, styles: Styles) -> Iterator[bytes]:
    yield data(_chat_chunk(made, {"role": "assistant", "content": ""}))
    for thought in THOUGHTS:
        yield data(_chat_chunk(made, {"reasoning_content": thought}))
    for word in halfway(made.words, styles):
        yield data(_chat_chunk(made, {"content": word}))
    if "error-frame" in styles:
        yield data({"error": {"message": FAILURE, "type": "server_error", "code": "internal", "param": None}})
        return
    if "no-terminal" in styles:
        return
    last = _chat_chunk(made, {}, "stop")
    if "usage-early" in styles:
        yield data({**last, "usage": chat_usage(made)})
    else:
        yield data(last)
        yield data({**last, "choices": [], "usage": chat_usage(made)})
    if "no-done" not in styles:
        yield DONE


def _chat_chunk(made: Answer, delta: Json, finish_reason: str | None = None) -> Json:
    return {
        "id": made.id,
        "object": "chat.completion.chunk",
        "created": made.created,
        "model": made.model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        "system_fingerprint": FINGERPRINT,
    }


def response_usage(made: Answer) -> Json:
    """Usage as the responses endpoint counts it."""
    return {
        "input_tokens": made.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": made.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": made.reasoning_tokens},
        "total_tokens": made.total_tokens,
        "cost_in_usd_ticks": made.total_tokens * 1000,
        "num_sources_used": 0,
    }


def response_json(made: Answer, status: str = "completed") -> Json:
    """A response object; output and usage are filled in once it is completed."""
    done = status == "completed"
    return {
        "id": made.id,
        "object": "response",
        "created_at": made.created,
        "status": status,
        "model": made.model,
        "output": [_output_item(made, "completed", _output_parts(made.text))] if done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "temperature": None,
        "top_p": None,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "text": {"format": {"type": "text"}},
        "usage": response_usage(made) if done else None,
    }


def _output_parts(text: str) -> list[Json]:
    return [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]


def _output_item(made: Answer, status: str, content: list[Json]) -> Json:
    return {
        "id": f"msg_{made.id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def responses(made: Answer, styles: Styles) -> Iterator[bytes]:
    """response.created … response.completed, numbered from 0."""
    return styled(_numbered(_response_events(made, styles), styles), styles)


def _numbered(events: Iterable[Json], styles: Styles) -> Iterator[bytes]:
    frame = data if "no-event" in styles else named
    for number, event in enumerate(events):
        yield frame({"type": event["type"], "sequence_number": number, **event})
        if number == 1 and "ping" in styles:
            yield b"event: ping\n\n"
    if "done" in styles:
        yield DONE


def _response_events(made: Answer, styles: Styles) -> Iterator[Json]:
    part_of = {"item_id": f"msg_{made.id}", "output_index": 0, "content_index": 0}
    begun = response_json(made, "in_progress")
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    item = _output_item(made, "in_progress", [])
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    yield {"type": "response.content_part.added", **part_of, "part": _output_parts("")[0]}
    for word in halfway(made.words, styles):
        yield {"type": "response.output_text.delta", **part_of, "delta": word, "logprobs": []}
    if "error-frame" in styles:
        yield {"type": "error", "code": "server_error", "message": FAILURE, "param": None}
        return
    if "no-terminal" in styles:
        return
    yield {"type": "response.output_text.done", **part_of, "text": made.text, "logprobs": []}
    yield {"type": "response.content_part.done", **part_of, "part": _output_parts(made.text)[0]}
    item = _output_item(made, "completed", _output_parts(made.text))
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield _terminal_event(made, styles)


def _terminal_event(made: Answer, styles: Styles) -> Json:
    if "failed" in styles:
        error = {"code": "server_error", "message": FAILURE}
        return {"type": "response.failed", "response": {**response_json(made, "failed"), "error": error}}
    whole = response_json(made)
    if "incomplete" in styles:
        details = {"reason": "max_output_tokens"}
        stopped = {**whole, "status": "incomplete", "incomplete_details": details}
        return {"type": "response.incomplete", "response": stopped}
    return {"type": "response.completed", "response": whole}


def message_json(made: Answer, content: list[Json], stop_reason: str | None) -> Json:
    """A message in the Anthropic dialect."""
    return {
        "id": made.id,
        "type": "message",
        "role": "assistant",
        "model": made.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": made.prompt_tokens, "output_tokens": made.completion_tokens},
    }


def messages(made: Answer, styles: Styles) -> Iterator[bytes]:
    """message_start … message_stop."""
    return styled(map(named, _message_events(made, styles)), styles)


def _message_events(made: Answer, styles: Styles) -> Iterator[Json]:
    yield {"type": "message_start", "message": message_json(made, [], None)}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "ping"}
    for word in halfway(made.words, styles):
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
    if "error-frame" in styles:
        yield {"type": "error", "error": {"type": "api_error", "message": FAILURE}}
        return
    if "no-terminal" in styles:
        return
    yield {"type": "content_block_stop", "index": 0}
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": made.completion_tokens}}
    yield {"type": "message_stop"}


def complete_json(made: Answer, text: str, stop_reason: str | None) -> Json:
    """A completion in the older Anthropic dialect."""
    return {
        "type": "completion",
        "id": made.id,
        "completion": text,
        "stop_reason": stop_reason,
        "model": made.model,
    }


def complete(made: Answer, styles: Styles) -> Iterator[bytes]:
    """completion events, the last one with a stop_reason."""
    texts = [complete_json(made, word, None) for word in made.words]
    return styled(map(named, [*texts, complete_json(made, "", "stop_sequence")]), styles)


def completion_json(made: Answer, text: str, finish_reason: str | None) -> Json:
    """A completion in the older OpenAI dialect, whole or as a chunk."""
    return {
        "id": made.id,
        "object": "text_completion",
        "created": made.created,
        "model": made.model,
        "choices": [{"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None}],
    }


def completions(made: Answer, styles: Styles) -> Iterator[bytes]:
    """text_completion chunks, usage on the last, [DONE]."""
    texts = [data(completion_json(made, word, None)) for word in made.words]
    last = data({**completion_json(made, "", "stop"), "usage": chat_usage(made)})
    return styled([*texts, last, *(() if "no-done" in styles else (DONE,))], styles)
