"""OpenTelemetry traces: a server span a request, with a client span for each attempt at the API below it.

Law: this module, and with it OpenTelemetry's SDK, is imported only where OTEL_EXPORTER_OTLP_ENDPOINT is set;
spans hold methods, routes, statuses, kinds, sizes and request ids, never a path, query, body or token; what
becomes of a span is not felt by its request. All that can be set, the SDK reads from the OTEL_* variables.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Final, Generic, Protocol, TypeVar

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from grok_oauth_proxy import __version__
from grok_oauth_proxy.asgi import Application, Receive, Scope, Send
from grok_oauth_proxy.events import Event, RequestFinished, UpstreamFailed, UpstreamRejected
from grok_oauth_proxy.observe.log import logger
from grok_oauth_proxy.observe.metrics import METHODS, PAGES, route_label

Headers = list[tuple[bytes, bytes]]

_W3C: Final = TraceContextTextMapPropagator()
_FIELDS: Final = frozenset(name.encode() for name in _W3C.fields)
_FLUSHED_WITHIN: Final = 3.0
"""Seconds that the last spans get at the end."""
_LONGEST_ID: Final = 128


class Asked(Protocol):
    """A request to the API, as far as it is looked at here."""

    @property
    def method(self) -> str: ...
    @property
    def headers(self) -> Headers: ...


class Answered(Protocol):
    """Its answer, as far as it is looked at here."""

    status: int


Question = TypeVar("Question", bound=Asked, contravariant=True)
Reply = TypeVar("Reply", bound=Answered, covariant=True)


class Api(Protocol[Question, Reply]):
    """Who asks the API. `context`: it gets the trace context."""

    host: bytes
    base_path: bytes
    context: bool

    def send(self, request: Question, /) -> Awaitable[Reply]: ...


class Traced:
    """The spans of one request: its own, and that of the attempt at the API which is under way."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self.span = span
        self._tracer = tracer
        self._attempt: Span | None = None
        self._attempts = 0

    def __repr__(self) -> str:
        return f"Traced({self.span!r}, attempts={self._attempts})"

    def begin_attempt(self, method: str, address: str) -> Span:
        """The attempt before it, if any, has ended."""
        self.end_attempt()
        attributes: dict[str, str | int] = {"http.request.method": method, "server.address": address}
        if self._attempts:
            attributes["http.request.resend_count"] = self._attempts
        self._attempts += 1
        self._attempt = self._tracer.start_span(
            method, set_span_in_context(self.span), SpanKind.CLIENT, attributes
        )
        return self._attempt

    def end_attempt(self, error: str | None = None) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            _end(attempt, error)

    def finish(self, event: RequestFinished) -> None:
        """The request is over; its span ends with the application."""
        error = event.error or (str(event.status) if event.status >= 500 else None)
        self.end_attempt()
        self.span.set_attributes(
            {
                "http.response.status_code": event.status,
                "http.request.body.size": event.bytes_in,
                "http.response.body.size": event.bytes_out,
                "grok_proxy.ending": event.ending,
            }
        )
        if event.request_id.isascii() and event.request_id.isprintable():
            self.span.set_attribute("grok_proxy.request_id", event.request_id[:_LONGEST_ID])
        if event.ending == "truncated" or error:
            self.span.set_attribute("error.type", error or "truncated")
        if event.ending == "truncated" or event.status >= 500:
            self.span.set_status(Status(StatusCode.ERROR))


_current: ContextVar[Traced | None] = ContextVar("traced", default=None)


class Tracing:
    """An observer, and what stands around the application and around what asks the API.

    Raises ValueError and OSError for an OTEL_ variable of no use.
    """

    def __init__(self) -> None:
        for library in (
            "opentelemetry",
            "urllib3",
        ):  # what they find is told here, once, and shows no address
            logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        self._deliveries = Deliveries(OTLPSpanExporter())
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._deliveries))
        self._tracer = self._provider.get_tracer("grok_oauth_proxy", __version__)

    def __call__(self, event: Event, /) -> None:
        if (traced := _current.get()) is None:
            return
        if isinstance(event, RequestFinished):
            traced.finish(event)
        elif isinstance(event, UpstreamFailed):
            traced.end_attempt(event.kind)
        elif isinstance(event, UpstreamRejected):
            traced.span.set_attribute("grok_proxy.rejection", event.kind)

    def around(self, app: Application) -> Application:
        """`app`, with a span for each request but those for its own pages, which are asked all the time."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            path = scope["raw_path"].decode("latin-1")
            if path in PAGES:
                await app(scope, receive, send)
                return
            span = self._begin(scope["method"], route_label(path), scope["headers"])
            token = _current.set(Traced(self._tracer, span))
            try:
                await app(scope, receive, send)
            finally:
                _current.reset(token)
                span.end()

        return traced

    def _begin(self, method: str, route: str, headers: Headers) -> Span:
        method = method if method in METHODS else "_OTHER"
        told = {name.decode(): value.decode("latin-1") for name, value in headers if name in _FIELDS}
        attributes = {"http.request.method": method, "http.route": route}
        return self._tracer.start_span(f"{method} {route}", _W3C.extract(told), SpanKind.SERVER, attributes)

    def attempts(self, api: Api[Question, Reply]) -> Attempts[Question, Reply]:
        """`api`, with a span for each time that it is asked."""
        return Attempts(api)

    async def aclose(self) -> None:
        """Deliver what is left, in a moment at most. The SDK would wait for half a minute."""
        loop, delivered = asyncio.get_running_loop(), asyncio.Event()

        def deliver() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody has waited for it
                loop.call_soon_threadsafe(delivered.set)

        # No thread of the loop's own: it would wait for that before it ends.
        threading.Thread(target=deliver, name="last-traces", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSHED_WITHIN):
                await delivered.wait()


class Attempts(Generic[Question, Reply]):
    """Asks as `api` does. A span lasts as long as the answer; of a refusal, to its head."""

    def __init__(self, api: Api[Question, Reply]) -> None:
        self.host = api.host
        self.base_path = api.base_path
        self.context = api.context
        self._api = api
        self._address = api.host.decode("ascii")

    async def send(self, request: Question, /) -> Reply:
        if (traced := _current.get()) is None:
            return await self._api.send(request)
        span = traced.begin_attempt(request.method if request.method in METHODS else "_OTHER", self._address)
        if self.context:
            _tell(request.headers, span)
        try:
            answer = await self._api.send(request)
        except BaseException as error:
            traced.end_attempt(getattr(error, "kind", type(error).__name__))
            raise
        span.set_attribute("http.response.status_code", answer.status)
        if answer.status >= 400:
            traced.end_attempt(str(answer.status))
        return answer


class Deliveries(SpanExporter):
    """Hands spans on, and tells once that they do not arrive, and once that they do again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._arrive = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception:  # noqa: BLE001 - a certificate that is not there, and what else a library may raise
            result = SpanExportResult.FAILURE
        arrive = result is SpanExportResult.SUCCESS
        if arrive is not self._arrive:
            self._arrive = arrive
            if arrive:
                logger.info("Traces arrive again.")
            else:
                logger.warning(
                    "Traces do not arrive where OTEL_EXPORTER_OTLP_ENDPOINT points; requests are answered "
                    "all the same. Check that address and the collector there. [traces_lost]"
                )
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _end(span: Span, error: str | None) -> None:
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def _tell(headers: Headers, span: Span) -> None:
    """Name the span of the attempt in the place of the client's; right behind `Host`."""
    told: dict[str, str] = {}
    _W3C.inject(told, set_span_in_context(span))
    own = [(name.encode(), value.encode()) for name, value in told.items()]
    headers[1:] = own + [item for item in headers[1:] if item[0] not in _FIELDS]


def _resource() -> Resource:
    """As OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say."""
    said = Resource.create({SERVICE_VERSION: __version__})
    if str(said.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return said.merge(Resource({SERVICE_NAME: "grok-oauth-proxy"}))
    return said
