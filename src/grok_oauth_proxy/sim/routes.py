"""Which endpoint answers which method and path. Routing looks at the decoded path only."""

from __future__ import annotations

import re
from collections.abc import Callable

from grok_oauth_proxy.sim import catalog, completions, media
from grok_oauth_proxy.sim.call import Call, Endpoint
from grok_oauth_proxy.sim.rejections import plain
from grok_oauth_proxy.sim.reply import Reply

MODEL_SORTS = "|".join(catalog.MODELS)

TABLE: list[tuple[str, str, Endpoint]] = [
    ("POST", "/chat/completions", completions.chat_completions),
    ("GET", "/chat/deferred-completion/{id}", completions.deferred_completion),
    ("POST", "/responses", completions.responses),
    ("POST", "/responses/compact", completions.responses_compact),
    ("GET", "/responses/{id}", completions.response_get),
    ("DELETE", "/responses/{id}", completions.response_delete),
    ("GET", "/responses/{id}/input_items", completions.response_input_items),
    ("POST", "/messages", completions.messages),
    ("POST", "/complete", completions.complete),
    ("POST", "/completions", completions.completions),
    ("GET", "/models", catalog.models),
    ("GET", "/models/{id}", catalog.model),
    ("GET", f"/{{sort:{MODEL_SORTS}}}", catalog.detailed_models),
    ("GET", f"/{{sort:{MODEL_SORTS}}}/{{id}}", catalog.detailed_model),
    ("POST", "/embeddings", catalog.embeddings),
    ("POST", "/tokenize-text", catalog.tokenize),
    ("POST", "/documents/search", catalog.search),
    ("GET", "/me", catalog.me),
    ("GET", "/api-key", catalog.api_key),
    ("POST", "/images/generations", media.generate_image),
    ("GET", "/images/{id}", media.poll_media),
    ("POST", "/videos/generations", media.generate_video),
    ("GET", "/videos/{id}", media.poll_media),
    ("POST", "/files", media.upload_file),
    ("GET", "/files/{id}/content", media.file_content),
    ("POST", "/stt", media.transcribe),
    ("POST", "/custom-voices", media.create_voice),
    ("GET", "/custom-voices/{id}/audio", media.voice_audio),
    ("POST", "/skills", media.create_skill),
    ("POST", "/tts", media.speak),
    ("POST", "/audio/speech", media.speak),
    ("POST", "/batches", media.create_batch),
    ("POST", "/{sort:batches}/{id}:cancel", media.cancel_batch),
    ("GET", "/{sort:files|custom-voices|skills|batches}", media.listing),
    ("GET", "/{sort:files|custom-voices|skills|batches}/{id}", media.one),
    ("DELETE", "/{sort:files|custom-voices|skills|batches}/{id}", media.delete),
]


def _pattern(template: str) -> re.Pattern[str]:
    """`{id}` matches one segment without a colon, `{name:a|b}` one of the alternatives."""
    pattern = re.sub(r"\{(\w+):([^}]*)\}", r"(?P<\1>\2)", template)
    return re.compile("/v1" + pattern.replace("{id}", r"(?P<id>[^/:]+)"))


ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = [
    (method, _pattern(template), endpoint) for method, template, endpoint in TABLE
]


def resolve(method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
    """The endpoint and its path parameters; refusals (404, 405) and OPTIONS are endpoints, too."""
    if re.fullmatch(r"/v1/echo(/.*)?", path, re.DOTALL):
        return echo, {}
    matches = [(m, match, endpoint) for m, regex, endpoint in ROUTES if (match := regex.fullmatch(path))]
    if not matches:
        return _refuser(404, "Not Found"), {}
    wanted = "GET" if method == "HEAD" else method
    for allowed, match, endpoint in matches:
        if allowed == wanted:
            return endpoint, match.groupdict()
    methods = sorted({allowed for allowed, _, _ in matches} | {"OPTIONS"})
    return (_options(methods) if method == "OPTIONS" else _refuser(405, "Method Not Allowed")), {}


def _refuser(status: int, text: str) -> Endpoint:
    return lambda _call: plain(status, text)


def _options(methods: list[str]) -> Callable[[Call], Reply]:
    headers = ((b"allow", ", ".join(methods).encode()),)
    return lambda _call: Reply(204, headers=headers)


def echo(call: Call) -> Reply:
    """Any method on /echo: what arrived, exactly."""
    exchange, record = call.exchange, call.exchange.record
    seen = {
        "method": exchange.method,
        "target": exchange.target,
        "headers": call.world.masked(exchange.headers),
        "bearer_serial": record.bearer_serial if record else None,
        "body_sha256": record.body_sha256 if record else None,
        "body_length": record.body_length if record else None,
        "http_version": exchange.scope["http_version"],
    }
    return Reply.json(seen)
