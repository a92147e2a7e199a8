"""Endpoints that answer with plain JSON: models, embeddings, tokens, search, and who is asking."""

from __future__ import annotations

import base64
import hashlib
import struct

from grok_oauth_proxy.sim.call import Call
from grok_oauth_proxy.sim.completions import rate_limit_headers
from grok_oauth_proxy.sim.rejections import flat
from grok_oauth_proxy.sim.reply import Reply

CREATED = 1_751_328_000
DIMENSIONS = 8
Json = dict[str, object]

MODELS: dict[str, tuple[str, ...]] = {
    "language-models": ("grok-4", "grok-4-fast-reasoning", "grok-3-mini", "grok-code-fast-1"),
    "image-generation-models": ("grok-2-image",),
    "video-generation-models": ("grok-imagine-video",),
    "embedding-models": ("v1-embedding",),
}
MODALITIES = {
    "language-models": (["text", "image"], ["text"]),
    "image-generation-models": (["text"], ["image"]),
    "video-generation-models": (["text", "image"], ["video"]),
    "embedding-models": (["text"], ["embedding"]),
}


def _model(model_id: str) -> Json:
    return {"id": model_id, "object": "model", "created": CREATED, "owned_by": "xai"}


def _detailed(sort: str, model_id: str) -> Json:
    inputs, outputs = MODALITIES[sort]
    return {
        **_model(model_id),
        "version": "1.0.0",
        "fingerprint": "fp_simulated",
        "aliases": [f"{model_id}-latest"],
        "input_modalities": inputs,
        "output_modalities": outputs,
        "prompt_text_token_price": 20_000,
        "completion_text_token_price": 100_000,
    }


def models(_call: Call) -> Reply:
    """GET /models."""
    known = [_model(model_id) for ids in MODELS.values() for model_id in ids]
    return Reply.json({"object": "list", "data": known})


def model(call: Call) -> Reply:
    """GET /models/{id}."""
    model_id = call.params["id"]
    if not any(model_id in ids for ids in MODELS.values()):
        return _no_model(model_id)
    return Reply.json(_model(model_id))


def detailed_models(call: Call) -> Reply:
    """GET /language-models and its three siblings."""
    sort = call.params["sort"]
    return Reply.json({"models": [_detailed(sort, model_id) for model_id in MODELS[sort]]})


def detailed_model(call: Call) -> Reply:
    """GET /language-models/{id} and its three siblings."""
    sort, model_id = call.params["sort"], call.params["id"]
    return Reply.json(_detailed(sort, model_id)) if model_id in MODELS[sort] else _no_model(model_id)


def _no_model(model_id: str) -> Reply:
    return flat(404, "not-found", f"The model {model_id} does not exist or your team has no access to it.")


def embeddings(call: Call) -> Reply:
    """POST /embeddings: unit-range vectors made from a hash of the text."""
    request = call.json()
    given = request.get("input", "")
    texts = [str(text) for text in given] if isinstance(given, list) else [str(given)]
    as_text = request.get("encoding_format") == "base64"
    items = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if as_text else vector}
        for index, vector in enumerate(map(_vector, texts))
    ]
    tokens = sum(max(1, len(text.split())) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    reply = {"object": "list", "data": items, "model": request.get("model", "v1-embedding"), "usage": usage}
    return Reply.json(reply, headers=rate_limit_headers(call.world))


def _vector(text: str) -> list[float]:
    digest = hashlib.sha256(text.encode()).digest()
    return [byte / 256 for byte in digest[:DIMENSIONS]]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def tokenize(call: Call) -> Reply:
    """POST /tokenize-text: a word is a token."""
    words = str(call.json().get("text", "")).split()
    tokens = [
        {"token_id": index, "string_token": word, "token_bytes": list(word.encode())}
        for index, word in enumerate(words)
    ]
    return Reply.json({"token_ids": tokens})


def search(call: Call) -> Reply:
    """POST /documents/search."""
    query = str(call.json().get("query", ""))
    match = {
        "file_id": "file-000000000000",
        "chunk_id": "chunk-1",
        "chunk_content": f"About {query}",
        "score": 0.5,
    }
    return Reply.json({"matches": [match]})


def me(_call: Call) -> Reply:
    """GET /me."""
    return Reply.json({"user_id": "user-sim-0001", "email": "pilot@example.com", "team_id": "team-sim-0001"})


def api_key(_call: Call) -> Reply:
    """GET /api-key."""
    reply = {
        "redacted_api_key": "xai-...key",
        "name": "simulated",
        "user_id": "user-sim-0001",
        "team_id": "team-sim-0001",
        "acls": ["api-key:model:*", "api-key:endpoint:*"],
        "api_key_blocked": False,
        "api_key_disabled": False,
        "team_blocked": False,
    }
    return Reply.json(reply)
