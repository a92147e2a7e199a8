"""How many requests are answered at once, so that overload is refused and not suffered.

Law: what is refused has cost the API nothing: no token was fetched and nothing was sent. Every slot is given
back, however the request ends. What was admitted is never cut for a limit, unless its client dawdles: it
keeps a slot that others need while it sends or takes next to nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.events import Observer, RequestRefused, StreamCounted
from grok_oauth_proxy.proxy.exchange import Exchange
from grok_oauth_proxy.proxy.headers import Headers, header
from grok_oauth_proxy.proxy.key_ring import Guest, KeyLimited

_EVENT_STREAM: Final = b"text/event-stream"
_WORD: Final = b'"stream"'
_WANTED: Final = re.compile(rb'"stream"\s*:\s*true\b')
_AWAITED: Final = 64 * 1024
"""Up to so many bytes of JSON are waited for: until it is whole, nobody can make anything of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many requests may be open at once, and how many of them streams; 0: any number."""

    requests: int
    streams: int


class Overloaded(ProxyError):
    """As much is being answered as may be."""

    kind: ClassVar[str] = "overloaded_error"
    status = 503


class Admission:
    """What is open in this process. `limits` may be replaced at any time; what is open counts on."""

    def __init__(self, limits: Limits, observer: Observer, clock: Clock) -> None:
        self.limits = limits
        self.streams = 0
        self._open: dict[Exchange, None] = {}
        """Those with a slot, in the order of coming."""
        self._observer = observer
        self._clock = clock

    def __repr__(self) -> str:
        return f"Admission(requests={len(self._open)}, streams={self.streams}, {self.limits})"

    async def enter(self, exchange: Exchange) -> None:
        """Give the request a slot, to be given back by `leave`.

        Raises `Overloaded` and `KeyLimited`, and `ClientGone` while the body is waited for.
        """
        if exchange.guest is not None:
            self._take(exchange.guest)
        self._open[exchange] = None
        if 0 < self.limits.requests < len(self._open):
            self._make_room(exchange, "requests", len(self._open) - self.limits.requests)
        if not exchange.body.ended and exchange.announces(_AWAITED) and _is_json(exchange.headers):
            # Many clients send the head and the body each by itself.
            await exchange.body.arrive()
        if _tells_of_stream(exchange):
            if self.streams >= self.limits.streams > 0:
                self._make_room(exchange, "streams", self.streams - self.limits.streams + 1)
            self._count_stream(exchange)

    def note_answer(self, exchange: Exchange, headers: Headers) -> None:
        """The head of an answer has come: it may be a stream that nobody could know of."""
        if not exchange.is_stream and exchange in self._open:
            kind = header(headers, b"content-type")
            if kind is not None and kind[: len(_EVENT_STREAM)].lower() == _EVENT_STREAM:
                self._count_stream(exchange)

    def leave(self, exchange: Exchange) -> None:
        """The request has ended, or was refused."""
        if exchange not in self._open:
            return
        del self._open[exchange]
        if exchange.guest is not None:
            exchange.guest.give_back()
        if exchange.is_stream:
            self.streams -= 1
            self._observer(StreamCounted(-1))

    def _take(self, guest: Guest) -> None:
        try:
            guest.take(self._clock.monotonic())
        except KeyLimited as limited:
            self._observer(RequestRefused(limited.code))
            raise

    def _count_stream(self, exchange: Exchange) -> None:
        exchange.is_stream = True
        self.streams += 1
        self._observer(StreamCounted(1))

    def _make_room(self, newcomer: Exchange, what: Literal["requests", "streams"], excess: int) -> None:
        """Turn out as many as there are too many, if their clients dawdle; raises `Overloaded` if not."""
        setting = f"PROXY_MAX_{what.upper()}"
        for _ in range(excess):
            self._observer(RequestRefused(what))
            candidates = (one for one in self._open if one.is_stream or what == "requests")
            slow = next((one for one in candidates if one is not newcomer and one.client.dawdles), None)
            if slow is None:
                self.leave(newcomer)
                if newcomer.guest is not None:
                    newcomer.guest.forgive()
                raise _overloaded(what, f"Try again in a moment, or raise {setting}.")
            self.leave(slow)
            remedy = (
                f"This one came so slowly that another took its place. Send it again, or raise {setting}."
            )
            slow.client.turn_out(_overloaded(what, remedy))


def _overloaded(what: str, remedy: str) -> Overloaded:
    message = f"The proxy is answering as many {what} as it may. {remedy}"
    return Overloaded(message, code="overloaded", retry_after=1)


def _tells_of_stream(exchange: Exchange) -> bool:
    """Whether the answer will be a stream, by what has come of the request: a body that is whole decides."""
    if exchange.client.wants_websocket:
        return True
    if exchange.framing and exchange.body.ended:
        return asks_for_stream(exchange.body.whole)
    return _EVENT_STREAM in (header(exchange.headers, b"accept") or b"").lower()


def asks_for_stream(body: bytes) -> bool:
    """Whether a JSON document says `"stream": true`; text that quotes these words escapes its quotes."""
    at = body.rfind(_WORD)  # a fraction of what `find` and `re` take (CPython), and the SDKs put it last
    while at >= 0:
        if _WANTED.match(body, at):
            return True
        at = body.rfind(_WORD, 0, at)
    return False


def _is_json(headers: Headers) -> bool:
    return (header(headers, b"content-type") or b"")[:16].lower() == b"application/json"
