"""Everything that makes the model speak: chat, responses, and the older dialects, as JSON or as events."""

from __future__ import annotations

from grok_oauth_proxy.sim import streams
from grok_oauth_proxy.sim.call import Call
from grok_oauth_proxy.sim.rejections import flat
from grok_oauth_proxy.sim.reply import Header, Reply
from grok_oauth_proxy.sim.sentences import THOUGHTS, Answer, answer
from grok_oauth_proxy.sim.world import Job, Stored, World

REQUEST_LIMIT = 480
TOKEN_LIMIT = 4_000_000
Json = dict[str, object]


def rate_limit_headers(world: World) -> tuple[Header, ...]:
    """What a successful completion says about the quota that is left."""
    values = {
        b"x-ratelimit-limit-requests": REQUEST_LIMIT,
        b"x-ratelimit-limit-tokens": TOKEN_LIMIT,
        b"x-ratelimit-remaining-requests": max(0, REQUEST_LIMIT - world.completions),
        b"x-ratelimit-remaining-tokens": max(0, TOKEN_LIMIT - world.spent_tokens),
    }
    return tuple((name, b"%d" % value) for name, value in values.items())


def chat_completions(call: Call) -> Reply:
    """POST /chat/completions: JSON, events, or a deferred request."""
    request = call.json()
    made = answer(call, request, "chatcmpl-")
    headers = rate_limit_headers(call.world)
    if request.get("stream"):
        return Reply.events(streams.chat(made, call.directives.sse), headers)
    if request.get("deferred"):
        request_id = call.world.next_id("deferred-")
        call.world.jobs[request_id] = Job(chat_json(made), call.world.config.deferred_polls)
        return Reply.json({"request_id": request_id}, headers=headers)
    return Reply.json(chat_json(made), headers=headers)


def chat_json(made: Answer) -> Json:
    """A whole chat completion."""
    message = {
        "role": "assistant",
        "content": made.text,
        "reasoning_content": "".join(THOUGHTS),
        "refusal": None,
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {
        "id": made.id,
        "object": "chat.completion",
        "created": made.created,
        "model": made.model,
        "choices": [choice],
        "usage": streams.chat_usage(made),
        "system_fingerprint": streams.FINGERPRINT,
    }


def responses(call: Call) -> Reply:
    """POST /responses: JSON or events; either way the response can be fetched afterwards."""
    request = call.json()
    made = answer(call, request, "resp_")
    view = streams.response_json(made)
    call.world.shelf("responses")[made.id] = Stored(view, str(request.get("input", "")).encode())
    headers = rate_limit_headers(call.world)
    if request.get("stream"):
        return Reply.events(streams.responses(made, call.directives.sse), headers)
    return Reply.json(view, headers=headers)


def response_get(call: Call) -> Reply:
    stored = call.world.shelf("responses").get(call.params["id"])
    return Reply.json(stored.view) if stored else _no_response(call)


def response_delete(call: Call) -> Reply:
    stored = call.world.shelf("responses").pop(call.params["id"], None)
    if stored is None:
        return _no_response(call)
    return Reply.json({"id": call.params["id"], "object": "response", "deleted": True})


def response_input_items(call: Call) -> Reply:
    stored = call.world.shelf("responses").get(call.params["id"])
    if stored is None:
        return _no_response(call)
    part = {"type": "input_text", "text": stored.content.decode()}
    item = {"id": f"msg_{stored.view['id']}", "type": "message", "role": "user", "status": "completed"}
    listing = {"object": "list", "data": [{**item, "content": [part]}], "has_more": False}
    return Reply.json({**listing, "first_id": item["id"], "last_id": item["id"]})


def responses_compact(call: Call) -> Reply:
    made = answer(call, call.json(), "cmp_")
    summary = {
        "id": call.world.next_id("cmpitem_"),
        "type": "compaction",
        "encrypted_content": "c2ltdWxhdGVk",
    }
    reply = {"id": made.id, "object": "response.compaction", "created_at": made.created, "output": [summary]}
    return Reply.json(
        {**reply, "usage": streams.response_usage(made)}, headers=rate_limit_headers(call.world)
    )


def _no_response(call: Call) -> Reply:
    return flat(404, "not-found", f"Response with id={call.params['id']} not found.")


def messages(call: Call) -> Reply:
    """POST /messages: the Anthropic dialect."""
    request = call.json()
    made = answer(call, request, "msg_")
    headers = rate_limit_headers(call.world)
    if request.get("stream"):
        return Reply.events(streams.messages(made, call.directives.sse), headers)
    content: list[Json] = [{"type": "text", "text": made.text}]
    return Reply.json(streams.message_json(made, content, "end_turn"), headers=headers)


def complete(call: Call) -> Reply:
    """POST /complete: the older Anthropic dialect."""
    request = call.json()
    made = answer(call, request, "compl_")
    headers = rate_limit_headers(call.world)
    if request.get("stream"):
        return Reply.events(streams.complete(made, call.directives.sse), headers)
    return Reply.json(streams.complete_json(made, made.text, "stop_sequence"), headers=headers)


def completions(call: Call) -> Reply:
    """POST /completions: the older OpenAI dialect."""
    request = call.json()
    made = answer(call, request, "cmpl-")
    headers = rate_limit_headers(call.world)
    if request.get("stream"):
        return Reply.events(streams.completions(made, call.directives.sse), headers)
    whole = streams.completion_json(made, made.text, "stop")
    return Reply.json({**whole, "usage": streams.chat_usage(made)}, headers=headers)


def deferred_completion(call: Call) -> Reply:
    """GET /chat/deferred-completion/{id}: 202 without a body until it is done."""
    return poll_job(call, Reply(202, content_type=""))


def poll_job(call: Call, pending: Reply) -> Reply:
    """`pending` as often as the config says, then the job's result; 404 for an unknown id."""
    job = call.world.jobs.get(call.params["id"])
    if job is None:
        return flat(404, "not-found", f"No deferred request has the id {call.params['id']}")
    if job.polls_left > 0:
        job.polls_left -= 1
        return pending
    return Reply.json(job.result)
