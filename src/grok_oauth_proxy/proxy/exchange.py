"""The client's side of one request: what was asked, what went back, how it ended."""

from __future__ import annotations

import http
from typing import Final, Literal, Protocol

from grok_oauth_proxy.asgi import Receive, Scope, Send
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.events import RequestFinished
from grok_oauth_proxy.proxy.body import Keep, RequestBody
from grok_oauth_proxy.proxy.headers import Headers, header
from grok_oauth_proxy.proxy.key_ring import Guest
from grok_oauth_proxy.proxy.replies import new_request_id, send_error
from grok_oauth_proxy.proxy.tunnel import End, Tunnel
from grok_oauth_proxy.proxy.upstream import Answer, UpstreamFailure
from grok_oauth_proxy.proxy.websocket import Handshake

_UPLOAD_LIFE: Final = 60.0
_LONGEST_ID: Final = 200
"""Characters of an id of the API's that are noted."""


class Client(Protocol):
    """Who asked, and takes the body of the answer: see `http1.exchange.Exchange`.

    The head, to which others may add, goes the way that ASGI has for it.
    """

    target: bytes
    framing: Headers
    wants_websocket: bool
    gone: bool
    turned_out: ProxyError | None

    @property
    def full(self) -> bool: ...
    @property
    def dawdles(self) -> bool: ...
    def turn_out(self, error: ProxyError) -> None: ...
    def take_body(self) -> bytes | None: ...
    def write(self, data: bytes) -> bool: ...
    async def drained(self) -> None: ...
    def end(self, data: bytes, trailers: Headers = ...) -> None: ...
    def cut(self) -> None: ...
    def switch(self, headers: Headers) -> End: ...


class Exchange:
    """Copies one answer to the client and remembers what the log and the metrics want to know."""

    handshake: Handshake | None = None
    is_stream = False
    """Its answer counts as a stream."""
    request_id = "-"
    ending: Literal["complete", "truncated", "client_gone", "refused"] = "client_gone"
    _tunnel: Tunnel | None = None
    _ttfb: float | None = None
    _status = 499  # until a head is sent: the client closed the request (nginx's number for it)
    _bytes_out = 0
    _error: str | None = None
    upstream_took: float | None = None
    """Seconds from sending the request, for the last time, to the head of the API's answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, clock: Clock, *, keep: Keep) -> None:
        self.client: Client = scope["state"]["client"]
        self._keep = keep
        self._send = send
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.headers: Headers = scope["headers"]
        self.framing = self.client.framing
        self.body = RequestBody(receive, whole=self.client.take_body(), keep=keep)
        self.guest: Guest | None = scope["state"].get("guest")
        self.key = None if self.guest is None else self.guest.name
        self._clock = clock
        self.began_at = clock.wall()
        self._began = clock.monotonic()

    def __repr__(self) -> str:
        return f"Exchange({self.method}, status={self._status}, ending={self.ending})"

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head, with a request id of ours if it has none. It goes out with what follows."""
        self._name(headers)
        self._head_goes_out(status)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def _name(self, headers: Headers) -> None:
        theirs = header(headers, b"x-request-id")
        if theirs is None:
            self.request_id = new_request_id()
            headers.append((b"x-request-id", self.request_id.encode()))
        else:
            self.request_id = theirs.decode("latin-1")[:_LONGEST_ID]

    @property
    def life_needed(self) -> float:
        """Seconds the token should still live: an upload may be too large to be sent again with another."""
        if self.body.kept_whole and self.body.ended:
            return 0.0
        return 0.0 if self.announces(self._keep.limit) else _UPLOAD_LIFE

    def announces(self, most: int) -> bool:
        """Whether the head says that the body will be of so many bytes at most, and it will be kept."""
        length = dict(self.framing).get(b"content-length")
        return length is not None and int(length) <= min(most, self._keep.limit)

    @property
    def brings_secret(self) -> bool:
        """The client has a credential of its own for the API."""
        return self.handshake is not None and self.handshake.brings_secret

    def shake_hands(self) -> None:
        """Check the client's part of a WebSocket handshake and prepare ours; raises `ClientError`."""
        self.handshake = Handshake(self.headers)

    async def converse(self, answer: Answer) -> None:
        """Carry a WebSocket, to which the API has switched, until either side ends it.

        Raises `UpstreamFailure` if there is none, or the API breaks it off, `ClientGone` if the client does.
        """
        assert self.handshake is not None  # noqa: S101 - without one no switch was asked for
        headers = self.handshake.answer(answer.headers)
        api = answer.switch()
        self._name(headers)
        self._head_goes_out(http.HTTPStatus.SWITCHING_PROTOCOLS)
        client = self.client.switch(headers)
        self._tunnel = Tunnel(client, api, patience=answer.connection.patience)
        try:
            await self._tunnel.carry()
        except TimeoutError:
            raise UpstreamFailure("timeout", sent=True) from None
        self.ending = "complete"

    @property
    def full(self) -> bool:
        return self.client.full

    def write(self, data: bytes) -> bool:
        """Part of the answer's body; False when the client takes no more for now."""
        self._bytes_out += len(data)
        return self.client.write(data)

    async def drained(self) -> None:
        await self.client.drained()

    def end(self, data: bytes, trailers: Headers) -> None:
        self.ending = "complete"
        self._bytes_out += len(data)
        self.client.end(data, trailers)

    async def refuse(self, error: ProxyError) -> None:
        """Answer with an error of our own; nothing may have been sent before."""
        self.ending, self._error = "refused", error.code
        self.request_id = new_request_id()
        self._head_goes_out(error.status)
        self._bytes_out = await send_error(self._send, error, self.request_id)

    def cut_short(self) -> None:
        """End the connection so that the client sees that the answer is not whole."""
        self.ending = "truncated"
        self.client.cut()

    async def was_ended(self) -> bool:
        """Whether it was stopped because its client has gone, or was turned out, which it is told."""
        if (error := self.client.turned_out) is not None:
            self._error = error.code
            await self.give_up(error)
        elif self.client.gone:
            self.ending = "client_gone"
        else:
            return False
        return True

    async def give_up(self, error: ProxyError) -> None:
        """Say why if nothing was sent yet, else break off."""
        if self._ttfb is not None:
            self.cut_short()
        else:
            await self.refuse(error)

    def finished(self) -> RequestFinished:
        self.body.abandon()
        tunnel = self._tunnel
        return RequestFinished(
            self.method,
            self.raw_path.decode("latin-1"),
            self._status,
            self._clock.monotonic() - self._began,
            self._ttfb,
            tunnel.count_in if tunnel else self.body.count,
            tunnel.count_out if tunnel else self._bytes_out,
            self.request_id,
            self.ending,
            self.upstream_took,
            self.key,
            self._error,
        )

    def _head_goes_out(self, status: int) -> None:
        self._status = status
        self._ttfb = self._clock.monotonic() - self._began
