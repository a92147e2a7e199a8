"""multipart/form-data (RFC 7578), as little of it as the endpoints need."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message

from grok_oauth_proxy.sim.call import Call, UnreadableError


@dataclass(frozen=True)
class Part:
    """One part of a form; `filename` None marks a plain field."""

    name: str
    filename: str | None
    data: bytes


def parts(call: Call) -> list[Part]:
    """The parts in the order sent. Raises UnreadableError with 415 or 400."""
    kind = _header("content-type", call.header(b"content-type"))
    if kind.get_content_type() != "multipart/form-data":
        raise UnreadableError(415, "Expected a multipart/form-data body")
    boundary = kind.get_param("boundary")
    if not isinstance(boundary, str):
        raise UnreadableError(400, "The multipart boundary is missing")
    delimiter = b"--" + boundary.encode("latin-1")
    sections = (b"\r\n" + call.body).split(b"\r\n" + delimiter)
    if len(sections) < 2 or not sections[-1].startswith(b"--"):
        raise UnreadableError(400, "The multipart body is not terminated")
    return [_part(section) for section in sections[1:-1]]


def _part(section: bytes) -> Part:
    head, blank, data = section.partition(b"\r\n\r\n")
    if not blank:
        raise UnreadableError(400, "A part has no header")
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            return _named(_header("content-disposition", value.strip()), data)
    raise UnreadableError(400, "A part has no Content-Disposition")


def _named(disposition: Message, data: bytes) -> Part:
    name = disposition.get_param("name", header="content-disposition")
    filename = disposition.get_param("filename", header="content-disposition")
    if not isinstance(name, str):
        raise UnreadableError(400, "A part has no name")
    return Part(name, filename if isinstance(filename, str) else None, data)


def _header(name: str, value: str) -> Message:
    message = Message()
    message[name] = value
    return message
