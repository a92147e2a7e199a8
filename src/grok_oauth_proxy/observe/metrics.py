"""Prometheus metrics, counted from events. Every label value comes from a fixed set."""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import disable_created_metrics as _disable_created_metrics
from prometheus_client.multiprocess import MultiProcessCollector

from grok_oauth_proxy.credentials.status import CredentialStatus
from grok_oauth_proxy.events import (
    FAILURES,
    LIMITS,
    REJECTIONS,
    Event,
    KeyUsedInstead,
    RefreshFailed,
    RefreshSucceeded,
    RequestFinished,
    RequestRefused,
    RequestStarted,
    StaleTokenRetry,
    StreamCounted,
    UpstreamFailed,
    UpstreamRejected,
)
from grok_oauth_proxy.observe.gauges import Gauges
from grok_oauth_proxy.observe.key_metrics import KeyMetrics
from grok_oauth_proxy.observe.news import News
from grok_oauth_proxy.observe.processes import Processes

_disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client has no type for it

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LATENCY: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)

_TOGETHER: Final = 500
"""How many requests are counted at once, at the latest; a scrape counts them all."""
_SHARED_WITHIN: Final = 0.05
"""Seconds after which another process knows of a request."""

PAGES: Final = ("/health", "/metrics")
"""Asked so often that their times would hide those of a few slow answers."""

_ROUTES: Final = (
    *PAGES,
    "/v1/api-key",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/batches",
    "/v1/batches/{id}",
    "/v1/chat/completions",
    "/v1/chat/deferred-completion/{id}",
    "/v1/complete",
    "/v1/completions",
    "/v1/custom-voices",
    "/v1/custom-voices/{id}",
    "/v1/custom-voices/{id}/audio",
    "/v1/documents/search",
    "/v1/embedding-models",
    "/v1/embeddings",
    "/v1/files",
    "/v1/files/{id}",
    "/v1/files/{id}/content",
    "/v1/image-generation-models",
    "/v1/images/edits",
    "/v1/images/generations",
    "/v1/images/{id}",
    "/v1/language-models",
    "/v1/language-models/{id}",
    "/v1/me",
    "/v1/messages",
    "/v1/models",
    "/v1/models/{id}",
    "/v1/realtime",
    "/v1/responses",
    "/v1/responses/compact",
    "/v1/responses/{id}",
    "/v1/responses/{id}/input_items",
    "/v1/skills",
    "/v1/stt",
    "/v1/tokenize-text",
    "/v1/tts",
    "/v1/video-generation-models",
    "/v1/videos/generations",
    "/v1/videos/{id}",
)
_FIXED: Final = frozenset(route for route in _ROUTES if "{" not in route)
_TEMPLATES: Final = [
    (re.compile(re.escape(route).replace(r"\{id\}", "[^/]+")), route) for route in _ROUTES if "{" in route
]


def route_label(path: str) -> str:
    """The known route `path` belongs to, or `other`: no path a client invents becomes a label."""
    if path in _FIXED:
        return path
    return next((route for pattern, route in _TEMPLATES if pattern.fullmatch(path)), "other")


class _Latencies(Histogram):
    """Takes many values at once, which prometheus-client's own `observe` does not."""

    def observe_all(self, seconds: list[float]) -> None:
        """Each of them; it costs a fraction of `observe` for each."""
        for place, count in Counts(bisect_left(self._upper_bounds, value) for value in seconds).items():
            self._buckets[place].inc(count)
        self._sum.inc(sum(seconds))


class Metrics:
    """An observer. `status` and `news` are asked for what is the case now.

    `shared`: the numbers of several processes add up, in the folder PROMETHEUS_MULTIPROC_DIR names.
    """

    def __init__(self, status: Callable[[], CredentialStatus], news: News, *, shared: bool = False) -> None:
        self._shared = shared
        self._registry = registry = CollectorRegistry()
        self._processes = Processes(workers=shared)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str) -> _Latencies:
            return _Latencies(name, text, registry=registry, buckets=_LATENCY)

        self._open = self._streams = 0
        self._keys = KeyMetrics(registry)
        self._settling: asyncio.TimerHandle | None = None
        self._finished: list[RequestFinished] = []
        self._requests = counter("proxy_requests_total", "Requests answered", "method", "route", "status")
        self._duration = histogram(
            "proxy_request_duration_seconds", "From request head to end of answer, below /v1"
        )
        self._ttfb = histogram(
            "proxy_time_to_first_byte_seconds", "From request head to answer head, below /v1"
        )

        self._in_flight = Gauge(
            "proxy_requests_in_flight",
            "Requests being answered",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._streams_open = Gauge(
            "proxy_streams_open", "Streams being answered", registry=registry, multiprocess_mode="livesum"
        )
        self._refused = counter(
            "proxy_refused_total", "Requests refused or turned out because of a limit", "reason"
        )
        self._gauges = Gauges(registry, status, news)
        self._refreshed = counter("proxy_oauth_refresh_success_total", "Token refreshes that gave a token")
        self._refresh_failed = counter("proxy_oauth_refresh_failure_total", "Those that did not", "reason")
        self._rotated = Gauge(
            "proxy_oauth_refresh_token_rotated",
            "1 if the last refresh replaced the refresh token",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._stale = {
            "attempt": counter("proxy_oauth_401_refresh_attempt_total", "Requests refused as stale"),
            "success": counter("proxy_oauth_401_refresh_success_total", "Those saved by a newer token"),
            "failure": counter("proxy_oauth_401_refresh_failure_total", "Those that were not"),
        }
        self._errors = counter("proxy_upstream_errors_total", "Attempts without a whole answer", "kind")
        self._rejections = counter("proxy_upstream_rejections_total", "Answers that refused", "kind")
        # From zero on: of a series that begins with 1, Prometheus sees no increase.
        known = ((self._errors, FAILURES), (self._rejections, REJECTIONS), (self._refused, LIMITS))
        for counted, kinds in known:
            for kind in kinds:
                counted.labels(kind)
        self._key_used = counter("proxy_api_key_fallback_total", "Requests sent with the API key instead")

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, RequestFinished):
            self._open -= 1
            if event.key is not None:
                self._keys.ended(event.key)
            self._finished.append(event)
            if len(self._finished) >= _TOGETHER:
                self.settle()
        elif isinstance(event, RequestStarted):
            self._open += 1
            if event.key is not None:
                self._keys.began(event.key)
        elif isinstance(event, StreamCounted):
            self._streams += event.change
        else:
            self._count(event)
            return
        if self._shared and self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(_SHARED_WITHIN, self.settle)

    def _count(self, event: Event) -> None:
        match event:
            case RefreshSucceeded(rotated=rotated):
                self._refreshed.inc()
                self._rotated.set(rotated)
            case RefreshFailed(reason=reason):
                self._refresh_failed.labels(reason).inc()
            case StaleTokenRetry(outcome=outcome):
                self._stale[outcome].inc()
            case UpstreamFailed(kind=kind):
                self._errors.labels(kind).inc()
            case UpstreamRejected(kind=kind):
                self._rejections.labels(kind).inc()
            case KeyUsedInstead():
                self._key_used.inc()
            case RequestRefused(reason=reason):
                self._refused.labels(reason).inc()

    def render(self) -> bytes:
        """The Prometheus text format."""
        self.settle()
        self._gauges.ask()
        counted = self._registry
        if self._shared:
            counted = CollectorRegistry()
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]  # prometheus-client has no type for it
        processes = CollectorRegistry()
        processes.register(self._processes)
        return generate_latest(counted) + generate_latest(processes)

    def settle(self) -> None:
        """Count what has finished; many at once take less than one at a time."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        self._in_flight.set(self._open)
        self._gauges.settle()
        self._streams_open.set(self._streams)
        finished, self._finished = self._finished, []
        for (method, path, status), count in Counts((e.method, e.path, e.status) for e in finished).items():
            labels = method if method in METHODS else "other", route_label(path), str(status)
            self._requests.labels(*labels).inc(count)
        self._keys.settle(finished)
        timed = [event for event in finished if event.path not in PAGES]
        self._duration.observe_all([event.duration for event in timed])
        self._ttfb.observe_all([event.ttfb for event in timed if event.ttfb is not None])
