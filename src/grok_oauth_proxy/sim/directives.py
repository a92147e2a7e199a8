"""The `x-sim` request header: how one request wants to be treated, so that concurrent tests stay apart.

Grammar: `name[=value]` joined by semicolons, for example `status=503;retry-after=1;times=2;key=abc`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from grok_oauth_proxy.sim.rejections import KINDS

SSE_STYLES = (
    "no-event",  # responses: without event: lines
    "crlf",  # CRLF line ends
    "usage-early",  # chat: usage on the finish chunk, no chunk with empty choices
    "no-done",  # chat: without data: [DONE]
    "done",  # responses: with data: [DONE]
    "no-terminal",  # ends after the deltas, with no terminal event of any sort
    "error-frame",  # an error event in the middle under HTTP 200, then the end
    "failed",  # responses: ends with response.failed
    "incomplete",  # responses: ends with response.incomplete
    "comments",  # comment keep-alives between the frames
    "ping",  # responses: a ping event without a data line
    "split",  # every frame written in pieces of seven bytes
)
CUTS = ("request", "head", "body", "length")


class DirectiveError(ValueError):
    """An x-sim header that does not parse; the message names the offending part."""


@dataclass(frozen=True)
class Directives:
    """A parsed x-sim header. Durations are in seconds."""

    reject: str | None = None
    status: int | None = None
    retry_after: str | None = None
    redirect: str | None = None
    cut: str | None = None
    hang: bool = False
    delay: float = 0.0
    times: int | None = None
    key: str | None = None
    # The rest shapes a good answer and is not limited by `times`.
    chunk_delay: float | None = None
    words: int | None = None
    sse: frozenset[str] = frozenset()
    gzip: bool = False
    br: bool = False
    early: bool = False

    def without_faults(self) -> Directives:
        """What remains once `times` is used up."""
        return Directives(
            chunk_delay=self.chunk_delay,
            words=self.words,
            sse=self.sse,
            gzip=self.gzip,
            br=self.br,
            early=self.early,
        )


def _choice(allowed: Iterable[str]) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(value)
        return value

    return parse


def _status(value: str) -> int:
    status = int(value)
    if not 200 <= status <= 599:
        raise ValueError(value)
    return status


def _seconds(value: str) -> float:
    seconds = float(value)
    if seconds < 0:
        raise ValueError(value)
    return seconds


def _styles(value: str) -> frozenset[str]:
    return frozenset(_choice(SSE_STYLES)(style) for style in value.split(","))


VALUED: dict[str, Callable[[str], object]] = {
    "reject": _choice(KINDS),
    "status": _status,
    "retry-after": str,
    "redirect": str,
    "cut": _choice(CUTS),
    "delay": _seconds,
    "times": int,
    "key": str,
    "chunk-delay": _seconds,
    "words": int,
    "sse": _styles,
}
BARE: dict[str, object] = {
    "hang": True,
    "gzip": True,
    "br": True,
    "early": True,
    "redirect": "/v1/echo/redirected",
}


def parse(headers: Iterable[tuple[bytes, bytes]]) -> Directives:
    """All x-sim headers of a request as one. Raises DirectiveError."""
    text = ";".join(value.decode("latin-1") for name, value in headers if name == b"x-sim")
    directives = Directives()
    for item in filter(None, (part.strip() for part in text.split(";"))):
        directives = _apply(directives, item)
    if directives.times is not None and directives.key is None:
        raise DirectiveError("times needs key")
    return directives


def _apply(directives: Directives, item: str) -> Directives:
    name, equals, value = item.partition("=")
    try:
        parsed = VALUED[name](value) if equals else BARE[name]
    except (KeyError, ValueError):
        raise DirectiveError(f"x-sim does not know {item!r}") from None
    if isinstance(parsed, frozenset):
        parsed = directives.sse | parsed
    return replace(directives, **{name.replace("-", "_"): parsed})  # type: ignore[arg-type]  # typed by VALUED
