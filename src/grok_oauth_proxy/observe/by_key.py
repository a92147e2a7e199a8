"""The requests of each named key, with a bound on how many names become labels."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from grok_oauth_proxy.events import RequestFinished

_MOST_KEYS: Final = 400
"""Names of keys that are told apart; twice as many as there may be at once, since some are revoked."""
_FURTHER_KEYS: Final = "(further)"  # no key can have this name


class ByKey:
    """Counts for `Metrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.open: Counts[str] = Counts()
        """Requests being answered, by the name of their key."""
        self._names: set[str] = set()
        self._requests = Counter(
            "proxy_key_requests_total", "Requests of a named key", ["key", "status"], registry=registry
        )
        self._in_flight = Gauge(
            "proxy_key_requests_in_flight",
            "Its requests being answered",
            ["key"],
            registry=registry,
            multiprocess_mode="livesum",
        )

    def settle(self, finished: Sequence[RequestFinished]) -> None:
        """Count what has finished."""
        served = Counts((e.key, e.status // 100) for e in finished if e.key is not None)
        for (key, kind), count in served.items():
            self._requests.labels(self._label(key), f"{kind}xx").inc(count)
        open_now: Counts[str] = Counts()
        for key, count in self.open.items():
            open_now[self._label(key)] += count
        for label, count in open_now.items():
            self._in_flight.labels(label).set(count)
        if len(self.open) > _MOST_KEYS:
            self.open = +self.open

    def _label(self, key: str) -> str:
        if key not in self._names and len(self._names) < _MOST_KEYS:
            self._names.add(key)
        return key if key in self._names else _FURTHER_KEYS
