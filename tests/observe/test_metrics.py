"""What is counted, and that no client can make the counters grow without end."""

from __future__ import annotations

import ast
import math
import os
import random
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from grok_oauth_proxy import __version__
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.events import (
    FAILURES,
    REJECTIONS,
    ChainAdopted,
    Event,
    RateLimitsTold,
    RefreshFailed,
    RefreshSucceeded,
    RequestFinished,
    RequestStarted,
    StaleTokenRetry,
    StoreTrouble,
    UpstreamFailed,
    UpstreamRejected,
)
from grok_oauth_proxy.observe.metrics import Metrics, route_label
from grok_oauth_proxy.observe.news import DEGRADING, News
from grok_oauth_proxy.proxy import rejections, upstream
from tests.observe.test_health import FINAL, PASSING, WELL


def finished(
    path: str = "/v1/models",
    *,
    method: str = "GET",
    status: int = 200,
    duration: float = 0.5,
    ttfb: float | None = 0.25,
) -> RequestFinished:
    return RequestFinished(method, path, status, duration, ttfb, 1, 2, "req_1", "complete")


def metrics_of(news: News | None = None, **status: Any) -> Metrics:
    """Metrics of a login that is well, but for what `status` says."""
    return Metrics(lambda: replace(WELL, **status), news or News(Clock()))


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and labels, as Prometheus reads them."""
    return {
        sample.name
        + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def after(*events: Event) -> dict[str, float]:
    metrics = metrics_of()
    for event in events:
        metrics(event)
    return {name: value for name, value in samples(metrics).items() if not name.startswith("process_")}


ROUTES = {
    "/v1/models": "/v1/models",
    "/v1/models/grok-4": "/v1/models/{id}",
    "/v1/models/": "other",
    "/v1/models/a/b": "other",
    "/v1/chat/completions": "/v1/chat/completions",
    "/v1/chat/deferred-completion/r-1": "/v1/chat/deferred-completion/{id}",
    "/v1/responses/compact": "/v1/responses/compact",
    "/v1/responses/resp_1": "/v1/responses/{id}",
    "/v1/responses/resp_1/input_items": "/v1/responses/{id}/input_items",
    "/v1/files/f-1/content": "/v1/files/{id}/content",
    "/v1/images/generations": "/v1/images/generations",
    "/v1/images/i-1": "/v1/images/{id}",
    "/v1/batches/b1:cancel": "/v1/batches/{id}",
    "/v1/custom-voices/v/audio": "/v1/custom-voices/{id}/audio",
    "/health": "/health",
    "/metrics": "/metrics",
    "/": "other",
    "": "other",
    "/v1": "other",
    "/v1/unknown": "other",
    "/V1/models": "other",
    "/v1/models\n": "other",
    "/v1/models?x": "other",
    "/health/": "other",
}


@pytest.mark.parametrize(("path", "label"), ROUTES.items(), ids=repr)
def test_route(path: str, label: str) -> None:
    """A path is counted under the route it belongs to, its ids left out."""
    assert route_label(path) == label


def test_labels_are_bounded() -> None:
    """Two thousand invented methods and paths add no label that was not there before them."""
    chance = random.Random(7)  # noqa: S311 - invented paths, no secret
    letters = 'abcdefghij/{}%:.?\\"\n\u00e9 '
    prefixes = ("", "/", "/v1/", "/v1/models/", "/v1/responses/", "/v1/files/x/")
    metrics = metrics_of()
    for _ in range(2000):
        path = chance.choice(prefixes) + "".join(chance.choices(letters, k=chance.randrange(1, 40)))
        method = "".join(chance.choices("GETPOSabc-", k=chance.randrange(1, 9)))
        metrics(finished(path, method=method))
    counted = [name for name in samples(metrics) if name.startswith("proxy_requests_total")]
    found = [
        re.fullmatch(r"proxy_requests_total method=(\S+) route=(\S+) status=200", name) for name in counted
    ]
    assert all(found)
    assert {match[1] for match in found if match} <= {"other", "GET", "POST", "PUT", "HEAD"}
    routes = {match[2] for match in found if match}
    assert routes <= {
        "other",
        "/v1/models/{id}",
        "/v1/responses/{id}",
        "/v1/files/{id}/content",
        "/v1/files/{id}",
    } | {"/v1/responses/{id}/input_items"}
    assert sum(value for name, value in samples(metrics).items() if name in counted) == 2000


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_known_methods(method: str) -> None:
    """The methods of HTTP keep their names."""
    assert (
        after(finished(method=method))[f"proxy_requests_total method={method} route=/v1/models status=200"]
        == 1
    )


def test_requests() -> None:
    """Requests are counted by method, route and status, and timed once each."""
    counted = after(
        *[RequestStarted()] * 3,
        finished(),
        finished(status=503, duration=2.0, ttfb=None),
        finished("/v1/x", method="BREW"),
    )
    assert counted["proxy_requests_total method=GET route=/v1/models status=200"] == 1
    assert counted["proxy_requests_total method=GET route=/v1/models status=503"] == 1
    assert counted["proxy_requests_total method=other route=other status=200"] == 1
    assert counted["proxy_request_duration_seconds_count"] == 3
    assert counted["proxy_request_duration_seconds_sum"] == pytest.approx(3.0)
    assert counted["proxy_time_to_first_byte_seconds_count"] == 2
    assert counted["proxy_requests_in_flight"] == 0


def test_times() -> None:
    """A time counts for the first bound that is not below it, and for all above."""
    times = [0.0, 0.005, 0.0051, 2.5, 4000.0]
    counted = after(*[finished(duration=time, ttfb=None) for time in times])
    bounds = ["0.005", "0.01", "1.0", "2.5", "3600.0", "+Inf"]
    buckets = [counted[f"proxy_request_duration_seconds_bucket le={bound}"] for bound in bounds]
    assert buckets == [2, 3, 3, 4, 4, 5]
    assert counted["proxy_request_duration_seconds_sum"] == pytest.approx(sum(times))


def test_pages_are_not_timed() -> None:
    """Health and metrics, asked all the time, are counted as requests and leave the latencies alone."""
    counted = after(finished("/health"), finished("/metrics", ttfb=0.1), finished())
    assert counted["proxy_requests_total method=GET route=/health status=200"] == 1
    assert counted["proxy_request_duration_seconds_count"] == 1
    assert counted["proxy_time_to_first_byte_seconds_count"] == 1


def test_in_flight() -> None:
    """What has begun and not ended is in flight."""
    assert after(RequestStarted(), RequestStarted(), finished())["proxy_requests_in_flight"] == 1


EVENTS: dict[str, tuple[Event, str]] = {
    "refreshed": (RefreshSucceeded(rotated=True, lifetime=1), "proxy_oauth_refresh_success_total"),
    "rotated": (RefreshSucceeded(rotated=True, lifetime=1), "proxy_oauth_refresh_token_rotated"),
    "refresh-failed": (
        RefreshFailed("timeout", "m", terminal=False),
        "proxy_oauth_refresh_failure_total reason=timeout",
    ),
    "stale": (StaleTokenRetry("attempt"), "proxy_oauth_401_refresh_attempt_total"),
    "saved": (StaleTokenRetry("success"), "proxy_oauth_401_refresh_success_total"),
    "lost": (StaleTokenRetry("failure"), "proxy_oauth_401_refresh_failure_total"),
    "upstream-failed": (UpstreamFailed("timeout"), "proxy_upstream_errors_total kind=timeout"),
    "refused": (
        UpstreamRejected("quota", "m", "r", "/v1/x", 0.0),
        "proxy_upstream_rejections_total kind=quota",
    ),
}


@pytest.mark.parametrize(("event", "sample"), EVENTS.values(), ids=EVENTS.keys())
def test_event(event: Event, sample: str) -> None:
    """Each event counts in one place, and only there."""
    before, counted = after(), after(event)
    assert counted[sample] == before.get(sample, 0) + 1
    changed = Counter(name for name, value in counted.items() if before.get(name, 0.0) != value)
    expected = {"proxy_oauth_refresh_success_total", "proxy_oauth_refresh_token_rotated"}
    assert set(changed) == (expected if isinstance(event, RefreshSucceeded) else {sample})


def test_not_rotated() -> None:
    """A refresh that kept the refresh token shows as that."""
    events = (RefreshSucceeded(rotated=True, lifetime=1), RefreshSucceeded(rotated=False, lifetime=1))
    assert after(*events)["proxy_oauth_refresh_token_rotated"] == 0


@pytest.mark.parametrize("event", [ChainAdopted("hermes"), StoreTrouble("corrupt", "m")])
def test_not_counted(event: Event) -> None:
    """What has no metric disturbs none."""
    assert len(after(event)) == len(after())


def test_expiry_is_asked_at_each_scrape() -> None:
    """The life left in the token is as of the scrape, and not a number when it is unknown."""
    left: list[float | None] = [12.5, -3.0, None]
    metrics = Metrics(lambda: replace(WELL, seconds_to_expiry=left.pop(0)), News(Clock()))
    found = [samples(metrics)["proxy_token_seconds_to_expiry"] for _ in range(3)]
    assert found[:2] == [12.5, -3.0]
    assert math.isnan(found[2])


PASSED_OVER = RefreshFailed("own_login_dead", "Run `login`.", terminal=False)


@pytest.mark.parametrize(
    ("status", "usable", "dead", "failing"),
    [
        ({}, 1, 0, 0),
        ({"problem": PASSING}, 1, 0, 1),
        ({"problem": FINAL}, 1, 1, 0),
        ({"problem": FINAL, "usable": False}, 0, 1, 0),
        ({"problem": PASSED_OVER}, 1, 0, 0),
    ],
    ids=["well", "fails-for-now", "dead-but-still-valid", "signed-out", "other-login-dead"],
)
def test_login(status: dict[str, Any], usable: int, dead: int, failing: int) -> None:
    """Whether the login can be used, is over, or is not refreshed for now, are three numbers."""
    found = samples(metrics_of(**status))
    assert found["proxy_credentials_usable"] == usable
    assert found["proxy_grant_dead"] == dead
    assert found["proxy_oauth_refresh_failing"] == failing


def test_refused_account() -> None:
    """A refusal of the account shows under its kind until its path is answered again, or for a day."""
    now = [1000.0]
    news = News(Clock(wall=lambda: now[0]))
    metrics = metrics_of(news)
    refusal = UpstreamRejected("quota", "m", "r", "/v1/models", 1000.0)

    def shown() -> dict[str, float]:
        found = samples(metrics)
        return {kind: found[f"proxy_account_refused kind={kind}"] for kind in DEGRADING}

    assert shown() == dict.fromkeys(DEGRADING, 0)
    news(refusal)
    assert shown() == {"entitlement": 0, "quota": 1, "spending_limit": 0}
    news(finished("/v1/me"))
    assert shown()["quota"] == 1
    news(finished("/v1/models"))
    assert shown() == dict.fromkeys(DEGRADING, 0)
    news(refusal)
    now[0] += 24 * 3600
    assert shown() == dict.fromkeys(DEGRADING, 0)


def test_rate_limits() -> None:
    """What the API last told of its limits is shown, and when; NaN for what it left out; nothing at first."""
    news = News(Clock())
    metrics = metrics_of(news)
    assert not any("rate_limit_" in name for name in samples(metrics))
    told: dict[str, int | None] = {"limit_requests": 480, "remaining_requests": 479, "limit_tokens": 4000000}
    told["remaining_tokens"] = 7
    news(RateLimitsTold(told, 5.0))
    found = samples(metrics)
    assert found["proxy_rate_limit_requests"] == 480
    assert found["proxy_rate_limit_remaining_requests"] == 479
    assert found["proxy_rate_limit_tokens"] == 4000000
    assert found["proxy_rate_limit_remaining_tokens"] == 7
    assert found["proxy_rate_limit_told_timestamp_seconds"] == 5
    news(RateLimitsTold({**told, "remaining_requests": 478, "remaining_tokens": None}, 6.0))
    found = samples(metrics)
    assert found["proxy_rate_limit_remaining_requests"] == 478
    assert math.isnan(found["proxy_rate_limit_remaining_tokens"])
    assert found["proxy_rate_limit_told_timestamp_seconds"] == 6


def test_from_zero_on() -> None:
    """Each kind of failure and refusal is shown before it happens: from zero to one is an increase."""
    kinds = {value.kind for value in vars(rejections).values() if isinstance(value, rejections.Rejection)}
    assert kinds == {*REJECTIONS}
    found = after()
    assert {found[f"proxy_upstream_rejections_total kind={kind}"] for kind in REJECTIONS} == {0}
    assert {found[f"proxy_upstream_errors_total kind={kind}"] for kind in FAILURES} == {0}


def test_kinds_of_failures() -> None:
    """What the code calls a failure of the API is in the list of them."""
    [folder] = upstream.__path__
    named = {
        node.args[0].value
        for path in Path(folder).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "UpstreamFailure"
        and isinstance(node.args[0], ast.Constant)
    }
    assert {*FAILURES} - named == {"broken_off", "truncated"} - named
    assert named <= {*FAILURES}


def test_process() -> None:
    """What the kernel knows of the process, when it was started, and which version it is."""
    began = time.time()
    found = samples(metrics_of())
    assert began <= found["process_start_time_seconds"] <= time.time()
    assert found["process_resident_memory_bytes"] > 10_000_000
    assert 3 <= found["process_open_fds"] <= found["process_max_fds"]
    assert 0 < found["process_cpu_seconds_total"] <= sum(os.times()[:4]) + 0.1
    assert found[f"proxy_build_info version={__version__}"] == 1


def test_no_creation_times() -> None:
    """No sample changes by itself from one start to the next."""
    assert not any("_created" in name for name in after(finished()))


def test_keys() -> None:
    """A named key has its requests by the class of their status, and what it has open."""
    events = [RequestStarted("app")] * 3 + [RequestStarted()] * 2
    told = finished()._replace(key="app")
    counted = after(*events, told, told._replace(status=429), finished())
    assert counted["proxy_key_requests_total key=app status=2xx"] == 1
    assert counted["proxy_key_requests_total key=app status=4xx"] == 1
    assert counted["proxy_key_requests_in_flight key=app"] == 1
    assert not any("key=None" in name for name in counted)
    assert counted["proxy_requests_in_flight"] == 2


def test_key_names_are_bounded() -> None:
    """However many keys come and go, only so many names are told apart, and no request is lost."""
    metrics = metrics_of()
    for number in range(1000):
        metrics(RequestStarted(f"key-{number}"))
        metrics(finished()._replace(key=f"key-{number}"))
    told = {name: value for name, value in samples(metrics).items() if name.startswith("proxy_key_")}
    assert told["proxy_key_requests_total key=(further) status=2xx"] == 600
    assert sum(told.values()) == 1000
    assert len(told) == 2 * 401
