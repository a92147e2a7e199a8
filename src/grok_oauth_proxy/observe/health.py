"""The health report: can this proxy answer, and if not, why and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from grok_oauth_proxy import __version__
from grok_oauth_proxy.credentials.status import CredentialStatus
from grok_oauth_proxy.observe.news import News, iso

_NO_REFRESH_YET = {
    "last_refresh_at": None,
    "last_refresh_status": None,
    "last_refresh_error_class": None,
    "refresh_token_rotated": None,
}


@dataclass(frozen=True, slots=True)
class UpstreamPing:
    """What GET /models said: HTTP status (None: no answer), latency in ms, and the failure's kind."""

    status: int | None
    latency_ms: float
    error: str | None


def health_report(
    credentials: CredentialStatus,
    api_base: str,
    news: News,
    ping: UpstreamPing | None = None,
    *,
    key_set: bool = False,
) -> tuple[int, dict[str, Any]]:
    """The HTTP status (200 or 503) and the JSON object of /health. `key_set`: an API key may step in."""
    status = _summary(credentials, ping, news)
    report: dict[str, Any] = {
        "status": status,
        "provider": "xai-oauth",
        "api_base": api_base,
        "token_expires_at": None if credentials.expires_at is None else iso(credentials.expires_at),
        "token_seconds_to_expiry": _rounded(credentials.seconds_to_expiry),
        "token_endpoint": credentials.token_endpoint,
        "credential_source": credentials.source,
        "owner": credentials.owner,
        "account": {"tier": credentials.tier, "principal_type": credentials.principal_type},
        "oauth_refresh": {
            **_NO_REFRESH_YET,
            **credentials.last_refresh,
            "refresh_success_count": credentials.successes,
            "refresh_failure_count": credentials.failures,
        },
        "problem": credentials.problem
        and {"code": credentials.problem.reason, "message": credentials.problem.message},
        **news.report(key_set=key_set),
        "version": __version__,
    }
    if ping:
        report["upstream"] = asdict(ping)
    return (200 if status in ("ok", "degraded") else 503), report


def _summary(credentials: CredentialStatus, ping: UpstreamPing | None, news: News) -> str:
    if news.draining:
        return "draining"
    if not credentials.usable:
        terminal = credentials.problem is not None and credentials.problem.terminal
        return "unauthenticated" if terminal else "unavailable"
    if ping and ping.status != 200:
        return "upstream_failing"
    return "degraded" if credentials.problem or news.refused else "ok"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
