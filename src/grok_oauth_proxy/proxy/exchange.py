"""The client's side of one request: what was asked, what went back, how it ended."""

from __future__ import annotations

from typing import Literal

from grok_oauth_proxy.asgi import Scope, Send
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.events import RequestFinished
from grok_oauth_proxy.proxy.body import RequestBody
from grok_oauth_proxy.proxy.headers import Headers, body_framing, header
from grok_oauth_proxy.proxy.replies import new_request_id, send_error


class Exchange:
    """Copies one answer to the client and remembers what the log and the metrics want to know."""

    def __init__(self, scope: Scope, send: Send, body: RequestBody, clock: Clock) -> None:
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.target: bytes = scope["state"]["target"]
        self.headers: Headers = scope["headers"]
        self.framing = body_framing(self.headers)
        self.body = body
        self.request_id = "-"
        self.ending: Literal["complete", "truncated", "client_gone", "refused"] = "client_gone"
        self._scope = scope
        self._send = send
        self._clock = clock
        self.began_at = clock.wall()
        self._began = clock.monotonic()
        self._ttfb: float | None = None
        self._status = 499  # until a head is sent: the client closed the request (nginx's number for it)
        self._bytes_out = 0

    def __repr__(self) -> str:
        return f"Exchange({self.method}, status={self._status}, ending={self.ending})"

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head, with a request id of ours if it has none."""
        theirs = header(headers, b"x-request-id")
        if theirs is None:
            self.request_id = new_request_id()
            headers.append((b"x-request-id", self.request_id.encode()))
        else:
            self.request_id = theirs.decode("latin-1")
        self._head_goes_out(status)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def copy(self, chunk: bytes) -> None:
        self._bytes_out += len(chunk)
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self, trailers: Headers) -> None:
        self.ending = "complete"
        await self._send({"type": "http.response.body", "body": b"", "trailers": trailers})

    async def refuse(self, error: ProxyError) -> None:
        """Answer with an error of our own; nothing may have been sent before."""
        self.ending = "refused"
        self.request_id = new_request_id()
        self._head_goes_out(error.status)
        self._bytes_out = await send_error(self._send, error, self.request_id)

    def cut_short(self) -> None:
        """End the connection so that the client sees that the answer is not whole."""
        self.ending = "truncated"
        self._scope["state"]["cut"]()

    async def give_up(self) -> None:
        """Our own code failed: say so if nothing was sent yet, else break off."""
        if self._ttfb is not None:
            self.cut_short()
        else:
            await self.refuse(ProxyError("The proxy failed to handle this request.", code="internal_error"))

    def finished(self) -> RequestFinished:
        return RequestFinished(
            method=self.method,
            path=self.raw_path.decode("latin-1"),
            status=self._status,
            duration=self._clock.monotonic() - self._began,
            ttfb=self._ttfb,
            bytes_in=self.body.count,
            bytes_out=self._bytes_out,
            request_id=self.request_id,
            ending=self.ending,
        )

    def _head_goes_out(self, status: int) -> None:
        self._status = status
        self._ttfb = self._clock.monotonic() - self._began
