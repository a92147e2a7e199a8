"""What is the case now, as gauges: the login, the account, the rate limits, the program itself.

Several processes: of what they all know, the one that set it last is right; a refusal of the account stands
while one of them meets it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Gauge

from grok_oauth_proxy import __version__
from grok_oauth_proxy.credentials.status import CredentialStatus
from grok_oauth_proxy.events import RateLimitsTold
from grok_oauth_proxy.observe.news import DEGRADING, News

_LIMITS: Final = {
    "limit_requests": ("proxy_rate_limit_requests", "Requests the API allows in its window"),
    "remaining_requests": ("proxy_rate_limit_remaining_requests", "Those of them that are left"),
    "limit_tokens": ("proxy_rate_limit_tokens", "Tokens the API allows in its window"),
    "remaining_tokens": ("proxy_rate_limit_remaining_tokens", "Those of them that are left"),
}
_PASSED_OVER: Final = "own_login_dead"
"""A problem with another login than the one that is refreshed."""


class Gauges:
    """`status` is asked at each scrape."""

    def __init__(
        self, registry: CollectorRegistry, status: Callable[[], CredentialStatus], news: News
    ) -> None:
        self._status = status
        self._news = news

        def gauge(
            name: str, text: str, *labels: str, of_all: Literal["mostrecent", "livemax", "max"] = "mostrecent"
        ) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=of_all)

        self._expiry = gauge("proxy_token_seconds_to_expiry", "Life left in the access token")
        self._usable = gauge("proxy_credentials_usable", "1 if requests can be sent with the login or key")
        self._dead = gauge("proxy_grant_dead", "1 if the login or key is refused for good")
        self._failing = gauge("proxy_oauth_refresh_failing", "1 while no new token is to be had, for now")
        refused = gauge(
            "proxy_account_refused", "1 while the API refuses the account", "kind", of_all="livemax"
        )
        self._refused = {kind: refused.labels(kind) for kind in sorted(DEGRADING)}
        self._told: RateLimitsTold | None = None
        # Made when they are known: until then there is nothing that they could show.
        self._new_gauge = gauge
        self._limits: dict[str, Gauge] = {}
        gauge("proxy_build_info", "The version that runs", "version", of_all="max").labels(__version__).set(1)
        gauge("process_start_time_seconds", "When the newest process of it was started", of_all="max").set(
            time.time()
        )
        self.settle()

    def ask(self) -> None:
        """How the login is, for a scrape."""
        status = self._status()
        left, problem = status.seconds_to_expiry, status.problem
        passing = problem is not None and not problem.terminal and problem.reason != _PASSED_OVER
        self._expiry.set(math.nan if left is None else left)
        self._usable.set(status.usable)
        self._dead.set(problem is not None and problem.terminal)
        self._failing.set(passing)

    def settle(self) -> None:
        """What was heard meanwhile."""
        now = self._news.refused
        for kind, gauge in self._refused.items():
            gauge.set(kind == now)
        if (told := self._news.limits) is not None and told is not self._told:
            self._told = told
            for key, (name, text) in _LIMITS.items():
                value = told.left[key]
                self._gauge(name, text).set(math.nan if value is None else value)
            self._gauge("proxy_rate_limit_told_timestamp_seconds", "When the API last told them").set(told.at)

    def _gauge(self, name: str, text: str) -> Gauge:
        if name not in self._limits:
            self._limits[name] = self._new_gauge(name, text)
        return self._limits[name]
