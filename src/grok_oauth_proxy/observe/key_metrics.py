"""What clients with named keys do. The names are the user's own, and only so many are told apart."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from grok_oauth_proxy.events import RequestFinished

_MOST: Final = 400
"""Names that are told apart: twice as many as there may be at once, since keys are revoked and made anew."""
_FURTHER: Final = "(further)"
"""Stands for all other names; no key can have it."""


class KeyMetrics:
    """Counted when the other metrics are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open: Counts[str] = Counts()
        self._labels: set[str] = set()
        self._requests = Counter(
            "proxy_key_requests_total",
            "Requests with a named key, by the class of their status",
            ["key", "status"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "proxy_key_requests_in_flight",
            "Requests with a named key being answered",
            ["key"],
            registry=registry,
            multiprocess_mode="livesum",
        )

    def began(self, key: str) -> None:
        self._open[key] += 1

    def ended(self, key: str) -> None:
        self._open[key] -= 1

    def settle(self, finished: Iterable[RequestFinished]) -> None:
        """Count `finished`, and tell what is open."""
        served = Counts((event.key, event.status // 100) for event in finished if event.key is not None)
        for (key, kind), count in served.items():
            self._requests.labels(self._label(key), f"{kind}xx").inc(count)
        told: Counts[str] = Counts()
        for key, count in self._open.items():
            told[self._label(key)] += count
        for label, count in told.items():
            self._in_flight.labels(label).set(count)
        if len(self._open) > _MOST:
            self._open = +self._open  # without those that have nothing open

    def _label(self, key: str) -> str:
        if len(self._labels) < _MOST:
            self._labels.add(key)
        return key if key in self._labels else _FURTHER
