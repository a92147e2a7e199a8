"""From the path a client asked for to the path the API is asked for. Pure, on bytes."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from grok_oauth_proxy.errors import ClientError

PREFIX = b"/v1"


def is_api_path(raw_path: bytes) -> bool:
    return raw_path == PREFIX or raw_path.startswith(PREFIX + b"/")


def upstream_target(target: bytes, base_path: bytes) -> bytes:
    """The request target for the API: everything after /v1 byte for byte, below the path of XAI_BASE_URL.

    Raises `ClientError` for a doubled prefix, and for dot segments, which could leave that path.
    """
    rest = target[len(PREFIX) :]
    path = rest.partition(b"?")[0]
    if is_api_path(path):
        raise ClientError(
            "The path begins with /v1 twice. Your client adds /v1 by itself: end its base URL before /v1.",
            code="doubled_prefix",
            status=404,
        )
    segments = unquote_to_bytes(path).replace(b"\\", b"/").split(b"/")
    if b"." in segments or b".." in segments:
        raise ClientError("The path must not contain . or .. segments.", code="bad_path")
    return base_path + rest if base_path + path else b"/" + rest


def outside_api(path: str) -> ClientError:
    """The 404 for a path outside /v1, with a hint when /v1 was forgotten."""
    hint = "This proxy serves /v1/*, /health and /metrics."
    if path.split("/")[1:2] != [""]:
        hint += " If your client is an OpenAI client, its base URL must end in /v1."
    return ClientError(f"There is nothing here. {hint}", code="not_found", status=404)
