"""Endpoints that take uploads, give bytes, or finish later: files, voices, images, videos, batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from grok_oauth_proxy.sim.call import Call
from grok_oauth_proxy.sim.completions import poll_job
from grok_oauth_proxy.sim.multipart import Part, parts
from grok_oauth_proxy.sim.rejections import flat, plain
from grok_oauth_proxy.sim.reply import Reply
from grok_oauth_proxy.sim.world import Job, Stored

DOWNLOAD_CHUNK = 64 * 1024  # bytes
UPLOAD_FRAMING = 64 * 1024  # bytes of multipart framing allowed beside the file itself
AUDIO = "audio/mpeg"
Json = dict[str, object]


def audio_bytes(text: str) -> bytes:
    """Something like an MP3: an ID3 tag, the text's hash, and every byte value."""
    return (
        b"ID3\x04\x00\x00\x00\x00\x00\x00" + hashlib.sha256(text.encode()).digest() + bytes(range(256)) * 16
    )


def _file_part(found: list[Part]) -> Part | None:
    return next((part for part in found if part.filename is not None), None)


def _fields(found: list[Part]) -> dict[str, str]:
    return {part.name: part.data.decode("utf-8", "replace") for part in found if part.filename is None}


def upload_file(call: Call) -> Reply:
    """POST /files: 413 above the configured size."""
    limit = call.world.config.max_upload_bytes
    too_large = flat(413, "payload-too-large", f"The file is larger than {limit} bytes.")
    if len(call.body) >= limit + UPLOAD_FRAMING:
        return too_large
    found = parts(call)
    part = _file_part(found)
    if part is None:
        return plain(400, "The form has no file part")
    if len(part.data) > limit:
        return too_large
    file_id = call.world.next_id("file-")
    view: Json = {
        "id": file_id,
        "object": "file",
        "bytes": len(part.data),
        "created_at": int(call.world.now()),
        "filename": part.filename,
        "purpose": _fields(found).get("purpose", "assistants"),
        "status": "processed",
    }
    call.world.shelf("files")[file_id] = Stored(view, part.data)
    return Reply.json(view)


def listing(call: Call) -> Reply:
    """GET of a collection: files, custom-voices, skills, batches."""
    views = [stored.view for stored in call.world.shelf(call.params["sort"]).values()]
    return Reply.json({"object": "list", "data": views, "has_more": False})


def one(call: Call) -> Reply:
    """GET of one stored object."""
    stored = call.world.shelf(call.params["sort"]).get(call.params["id"])
    return Reply.json(stored.view) if stored else _missing(call)


def delete(call: Call) -> Reply:
    """DELETE of one stored object."""
    stored = call.world.shelf(call.params["sort"]).pop(call.params["id"], None)
    if stored is None:
        return _missing(call)
    return Reply.json({"id": call.params["id"], "object": stored.view.get("object"), "deleted": True})


def _missing(call: Call) -> Reply:
    return flat(404, "not-found", f"Nothing in {call.params['sort']} has the id {call.params['id']}")


def file_content(call: Call) -> Reply:
    """GET /files/{id}/content: the very bytes uploaded, chunked."""
    stored = call.world.shelf("files").get(call.params["id"])
    if stored is None:
        return _missing(call)
    return Reply(200, b"", "application/octet-stream", chunks=_downloaded(stored.content))


def _downloaded(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), DOWNLOAD_CHUNK):
        yield content[start : start + DOWNLOAD_CHUNK]


def create_voice(call: Call) -> Reply:
    """POST /custom-voices: multipart with a recording."""
    found = parts(call)
    part = _file_part(found)
    if part is None:
        return plain(400, "The form has no file part")
    voice_id = call.world.next_id("voice-")
    view: Json = {"voice_id": voice_id, "object": "voice", "name": _fields(found).get("name", "")}
    call.world.shelf("custom-voices")[voice_id] = Stored(view, part.data)
    return Reply.json(view)


def voice_audio(call: Call) -> Reply:
    """GET /custom-voices/{id}/audio: the recording, chunked."""
    stored = call.world.shelf("custom-voices").get(call.params["id"])
    return Reply(200, b"", AUDIO, chunks=_downloaded(stored.content)) if stored else _missing(call)


def create_skill(call: Call) -> Reply:
    """POST /skills: multipart."""
    found = parts(call)
    skill_id = call.world.next_id("skill-")
    names = [part.filename or part.name for part in found]
    view: Json = {"id": skill_id, "object": "skill", "name": _fields(found).get("name", ""), "parts": names}
    call.world.shelf("skills")[skill_id] = Stored(view)
    return Reply.json(view)


def transcribe(call: Call) -> Reply:
    """POST /stt: the file must come last, after the fields that say how to read it."""
    found = parts(call)
    if not found or found[-1].filename is None:
        return plain(400, "The file must be the last part of the form")
    size = len(found[-1].data)
    reply = {"text": f"A recording of {size} bytes.", "duration": 1.0, "language": "en"}
    return Reply.json({**reply, "fields": [part.name for part in found]})


def speak(call: Call) -> Reply:
    """POST /tts, also as /audio/speech."""
    request = call.json()
    return Reply(200, audio_bytes(str(request.get("input") or request.get("text") or "")), AUDIO)


def generate_image(call: Call) -> Reply:
    """POST /images/generations: at once, or deferred."""
    request = call.json()
    image = {
        "url": f"{call.world.issuer}/images/simulated.png",
        "revised_prompt": str(request.get("prompt", "")),
    }
    result: Json = {"created": int(call.world.now()), "data": [image]}
    return _deferred(call, "image-", result) if request.get("deferred") else Reply.json(result)


def generate_video(call: Call) -> Reply:
    """POST /videos/generations: always deferred."""
    video = {"url": f"{call.world.issuer}/videos/simulated.mp4", "duration": 6, "respect_moderation": True}
    model = call.json().get("model", "grok-imagine-video")
    return _deferred(call, "video-", {"status": "done", "video": video, "model": model})


def _deferred(call: Call, prefix: str, result: Json) -> Reply:
    request_id = call.world.next_id(prefix)
    call.world.jobs[request_id] = Job(result, call.world.config.deferred_polls)
    return Reply.json({"request_id": request_id})


def poll_media(call: Call) -> Reply:
    """GET /videos/{id} and /images/{id}: 202 with a status, then 200."""
    return poll_job(call, Reply.json({"status": "pending"}, 202))


def create_batch(call: Call) -> Reply:
    """POST /batches."""
    batch_id = call.world.next_id("batch-")
    view: Json = {
        "batch_id": batch_id,
        "object": "batch",
        "state": "running",
        "name": call.json().get("name", ""),
    }
    call.world.shelf("batches")[batch_id] = Stored(view)
    return Reply.json(view)


def cancel_batch(call: Call) -> Reply:
    """POST /batches/{id}:cancel, with a literal colon."""
    stored = call.world.shelf("batches").get(call.params["id"])
    if stored is None:
        return _missing(call)
    stored.view["state"] = "cancelled"
    return Reply.json(stored.view)
