"""The health report: can this proxy answer, and if not, why."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from grok_oauth_proxy import __version__
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.status import CredentialStatus
from grok_oauth_proxy.events import RefreshFailed
from grok_oauth_proxy.observe.health import UpstreamPing, health_report
from grok_oauth_proxy.observe.news import News

WELL = CredentialStatus(
    source="hermes",
    owner="Hermes'.",
    token_endpoint="https://auth.x.ai/oauth2/token",
    expires_at=1_800_000_000.0,
    seconds_to_expiry=1234.5678,
    usable=True,
    problem=None,
    last_refresh={},
    successes=0,
    failures=0,
)
OVER = replace(WELL, usable=False, seconds_to_expiry=-5.0)
PASSING = RefreshFailed("timeout", "Wait.", terminal=False)
FINAL = RefreshFailed("invalid_grant", "Sign in.", terminal=True)
PONG = UpstreamPing(200, 12.0, None)

SUMMARIES: dict[str, tuple[CredentialStatus, UpstreamPing | None, int, str]] = {
    "well": (WELL, None, 200, "ok"),
    "well-and-deep": (WELL, PONG, 200, "ok"),
    "refresh-fails-for-now": (replace(WELL, problem=PASSING), None, 200, "degraded"),
    "dead-but-still-valid": (replace(WELL, problem=FINAL), None, 200, "degraded"),
    "over": (OVER, None, 503, "unavailable"),
    "over-for-now": (replace(OVER, problem=PASSING), None, 503, "unavailable"),
    "signed-out": (replace(OVER, problem=FINAL), None, 503, "unauthenticated"),
    "signed-out-though-the-api-answers": (replace(OVER, problem=FINAL), PONG, 503, "unauthenticated"),
    "api-refuses": (WELL, UpstreamPing(403, 1.0, None), 503, "upstream_failing"),
    "api-gone": (WELL, UpstreamPing(None, 1.0, "unreachable"), 503, "upstream_failing"),
    "api-gone-and-refresh-fails": (
        replace(WELL, problem=PASSING),
        UpstreamPing(None, 1.0, "timeout"),
        503,
        "upstream_failing",
    ),
}


@pytest.mark.parametrize(("status", "ping", "code", "word"), SUMMARIES.values(), ids=SUMMARIES.keys())
def test_summary(status: CredentialStatus, ping: UpstreamPing | None, code: int, word: str) -> None:
    """The status line of the report, and of HTTP, says whether requests can be answered."""
    answered, report = health_report(status, "https://api.x.ai/v1", News(Clock()), ping)
    assert (answered, report["status"]) == (code, word)


def report_of(status: CredentialStatus, ping: UpstreamPing | None = None) -> dict[str, Any]:
    return health_report(status, "https://api.x.ai/v1", News(Clock()), ping)[1]


def test_report() -> None:
    """Every field is there from the first moment, and is JSON."""
    report = report_of(WELL)
    assert json.loads(json.dumps(report)) == {
        "status": "ok",
        "provider": "xai-oauth",
        "api_base": "https://api.x.ai/v1",
        "token_expires_at": "2027-01-15T08:00:00Z",
        "token_seconds_to_expiry": 1234.6,
        "token_endpoint": "https://auth.x.ai/oauth2/token",
        "credential_source": "hermes",
        "owner": "Hermes'.",
        "account": {"tier": None, "principal_type": None},
        "oauth_refresh": {
            "last_refresh_at": None,
            "last_refresh_status": None,
            "last_refresh_error_class": None,
            "refresh_token_rotated": None,
            "refresh_success_count": 0,
            "refresh_failure_count": 0,
        },
        "problem": None,
        "last_rejection": None,
        "account_refused": None,
        "rate_limits": None,
        "api_key_fallback": None,
        "version": __version__,
    }


def test_last_refresh() -> None:
    """How the last refresh went is told, with the counts of this process."""
    told: dict[str, str | bool | None] = {"last_refresh_status": "success", "refresh_token_rotated": True}
    refresh = report_of(replace(WELL, last_refresh=told, successes=3, failures=2))["oauth_refresh"]
    assert refresh["last_refresh_status"] == "success"
    assert refresh["refresh_token_rotated"] is True
    assert refresh["last_refresh_at"] is None
    assert (refresh["refresh_success_count"], refresh["refresh_failure_count"]) == (3, 2)


def test_problem() -> None:
    """A problem comes with its code and what to do."""
    assert report_of(replace(WELL, problem=FINAL))["problem"] == {
        "code": "invalid_grant",
        "message": "Sign in.",
    }


def test_unknown_expiry() -> None:
    """A token that does not tell its expiry has none in the report."""
    report = report_of(replace(WELL, expires_at=None, seconds_to_expiry=None))
    assert report["token_expires_at"] is None
    assert report["token_seconds_to_expiry"] is None
    assert report["status"] == "ok"


@pytest.mark.parametrize("moment", [0.5, 99_999_999_999.0])
def test_far_expiry(moment: float) -> None:
    """The earliest and the latest expiry that a claim may name can both be written down."""
    assert report_of(replace(WELL, expires_at=moment))["token_expires_at"].endswith("Z")


def test_ping() -> None:
    """A deep report shows how the API answered; a shallow one does not mention it."""
    assert report_of(WELL, UpstreamPing(None, 3.5, "timeout"))["upstream"] == {
        "status": None,
        "latency_ms": 3.5,
        "error": "timeout",
    }
    assert "upstream" not in report_of(WELL)
