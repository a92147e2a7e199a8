"""The log as JSON, one object a line, for programs that read it."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

from grok_oauth_proxy.events import RequestFinished

LONGEST: Final = 500
"""Characters of what somebody else chose: journald cuts a line of 48 KiB in two, and neither is an object."""


def request_line(at: float, event: RequestFinished) -> str:
    """A finished request; times in whole milliseconds, null where there was none."""
    return line(
        at,
        "info",
        "request",
        method=event.method,
        path=event.path[:LONGEST],
        status=event.status,
        duration_ms=_milliseconds(event.duration),
        ttfb_ms=_milliseconds(event.ttfb),
        upstream_ms=_milliseconds(event.upstream),
        bytes_in=event.bytes_in,
        bytes_out=event.bytes_out,
        request_id=event.request_id[:LONGEST],
        ending=event.ending,
        key=event.key,
        error=event.error,
    )


class JsonFormatter(logging.Formatter):
    """All other lines: time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        return line(record.created, record.levelname.lower(), record.getMessage())


def line(at: float, level: str, message: str, **fields: Any) -> str:
    """An object in one line: time, level, message, and what else is to be told."""
    time = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": time, "level": level, "message": message, **fields})


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
