"""From the path a client asked for to the path the API is asked for. Pure, on bytes."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from grok_oauth_proxy.errors import ClientError

PREFIX = b"/v1"
_BELOW = b"/v1/"


def is_api_path(raw_path: bytes) -> bool:
    return raw_path.startswith(_BELOW) or raw_path == PREFIX


def upstream_target(target: bytes, base_path: bytes) -> bytes:
    """The request target for the API: everything after /v1 byte for byte, below the path of XAI_BASE_URL.

    Raises `ClientError` for a doubled prefix, and for a path that does not stay below it.
    """
    rest = target[len(PREFIX) :]
    path = rest.partition(b"?")[0]
    if is_api_path(path):
        raise ClientError(
            "The path begins with /v1 twice. Your client adds /v1 by itself: end its base URL before /v1.",
            code="doubled_prefix",
            status=404,
        )
    if _climbs_out(path):
        raise ClientError("The path leads out of /v1 by its .. segments.", code="bad_path")
    return base_path + rest if base_path + path else b"/" + rest


def _climbs_out(path: bytes) -> bool:
    """Whether any server could take the path for one above its beginning.

    Servers differ in what else they take for a slash (%2f, a backslash), and some cut parameters (`..;x`).
    So a segment counts as a step down only if all of them agree.
    """
    if path.find(b"..") < 0 and path.find(b"%") < 0:  # `in` takes twice as long (CPython)
        return False
    depth = 0
    for segment in path.split(b"/"):
        parts = unquote_to_bytes(segment).replace(b"\\", b"/").split(b"/")
        names = [part.partition(b";")[0] for part in parts]
        depth += -names.count(b"..") or int(any(name not in (b"", b".") for name in names))
        if depth < 0:
            return True
    return False


def outside_api(path: str) -> ClientError:
    """The 404 for a path outside /v1, with a hint when /v1 was forgotten."""
    hint = "This proxy serves /v1/*, /health and /metrics."
    if path.split("/")[1:2] != [""]:
        hint += " If your client is an OpenAI client, its base URL must end in /v1."
    return ClientError(f"There is nothing here. {hint}", code="not_found", status=404)
