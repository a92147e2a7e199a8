"""The outermost application: the front door, then either the API below /v1 or our own pages."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Literal

from grok_oauth_proxy.asgi import Application, Message, Receive, Scope, Send
from grok_oauth_proxy.bugs import log_bug
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.events import Observer, RequestFinished, RequestStarted
from grok_oauth_proxy.proxy.front_door import FrontDoor
from grok_oauth_proxy.proxy.headers import header
from grok_oauth_proxy.proxy.key_ring import Guest
from grok_oauth_proxy.proxy.replies import new_request_id, send_error
from grok_oauth_proxy.proxy.target import is_api_path


class Gateway:
    """ASGI. The API tells its own events; those of refusals and pages are told here."""

    def __init__(
        self, door: FrontDoor, api: Application, pages: Application, *, observer: Observer, clock: Clock
    ) -> None:
        self._door = door
        self._api = api
        self._pages = told(pages, observer, clock)
        self._observer = observer
        self._clock = clock

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        try:
            scope["state"]["guest"] = self._door.admit(scope)
        except ProxyError as error:
            app = told(_refusal(error), self._observer, self._clock, refusal=error.code)
        else:
            app = self._api if is_api_path(scope["raw_path"]) else self._pages
        return app(scope, receive, send)


def told(
    app: Application,
    observer: Observer,
    clock: Clock,
    *,
    refusal: str | None = None,
) -> Application:
    """`app`, its requests told as events, its answers with a request id, its bugs answered.
    `refusal`: the code of the error that it answers with."""
    ending: Literal["complete", "refused"] = "complete" if refusal is None else "refused"

    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        began = clock.monotonic()
        guest: Guest | None = scope["state"].get("guest")
        key = None if guest is None else guest.name
        answer = _Answer(send)
        observer(RequestStarted(key))
        try:
            await app(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 - a bug in a page must be told, and answered
            log_bug("A page failed.", error)
            if not answer.request_id:
                failure = ProxyError("The proxy failed to handle this request.", code="internal_error")
                await send_error(answer, failure, new_request_id())
        finally:
            duration = clock.monotonic() - began
            # An address in a path's place may carry a login.
            path = scope["raw_path"].decode("latin-1") if scope["raw_path"].startswith(b"/") else "-"
            observer(
                RequestFinished(
                    scope["method"],
                    path,
                    answer.status,
                    duration,
                    duration,
                    0,
                    answer.count,
                    answer.request_id,
                    ending,
                    key=key,
                    error=refusal,
                )
            )

    return telling


class _Answer:
    """Sends an answer on, with a request id of ours if it has none, and knows what was sent."""

    status = 500
    count = 0
    request_id = ""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.request_id = (header(message["headers"], b"x-request-id") or b"").decode("latin-1")
            if not self.request_id:
                self.request_id = new_request_id()
                own = (b"x-request-id", self.request_id.encode())
                message = {**message, "headers": [*message["headers"], own]}
        self.count += len(message.get("body", b""))
        await self._send(message)


def _refusal(error: ProxyError) -> Application:
    async def refuse(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send_error(send, error, new_request_id())

    return refuse
