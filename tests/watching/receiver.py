"""A collector of traces as a test sees it: OTLP over HTTP, decoded with OpenTelemetry's own types."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """A span that arrived; ids in hex, times in seconds."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    failed: bool
    began: float
    took: float


@dataclass
class Receiver:
    """What arrived: the bodies as bytes, and the spans in them."""

    url: str
    bodies: list[bytes] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)

    @property
    def services(self) -> set[str]:
        return {
            item.value.string_value
            for message in self._messages()
            for resource in message.resource_spans
            for item in resource.resource.attributes
            if item.key == "service.name"
        }

    @property
    def spans(self) -> list[Span]:
        return [
            Span(
                span.name,
                span.kind,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                {item.key: item.value.string_value or item.value.int_value for item in span.attributes},
                span.status.code == span.status.STATUS_CODE_ERROR,
                span.start_time_unix_nano / 1e9,
                (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
            )
            for message in self._messages()
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def _messages(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.heads.append({name.lower(): value for name, value in self.headers.items()})
            receiver.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is to be said."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
