"""The health report: can this proxy answer, and if not, why and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from grok_oauth_proxy import __version__
from grok_oauth_proxy.credentials.status import CredentialStatus

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
    credentials: CredentialStatus, api_base: str, ping: UpstreamPing | None = None
) -> tuple[int, dict[str, Any]]:
    """The HTTP status (200 or 503) and the JSON object of /health."""
    status = _summary(credentials, ping)
    report: dict[str, Any] = {
        "status": status,
        "provider": "xai-oauth",
        "api_base": api_base,
        "token_expires_at": _iso(credentials.expires_at),
        "token_seconds_to_expiry": _rounded(credentials.seconds_to_expiry),
        "token_endpoint": credentials.token_endpoint,
        "credential_source": credentials.source,
        "oauth_refresh": {
            **_NO_REFRESH_YET,
            **credentials.last_refresh,
            "refresh_success_count": credentials.successes,
            "refresh_failure_count": credentials.failures,
        },
        "problem": credentials.problem
        and {"code": credentials.problem.reason, "message": credentials.problem.message},
        "version": __version__,
    }
    if ping:
        report["upstream"] = asdict(ping)
    return (200 if status in ("ok", "degraded") else 503), report


def _summary(credentials: CredentialStatus, ping: UpstreamPing | None) -> str:
    if not credentials.usable:
        terminal = credentials.problem is not None and credentials.problem.terminal
        return "unauthenticated" if terminal else "unavailable"
    if ping and ping.status != 200:
        return "upstream_failing"
    return "degraded" if credentials.problem else "ok"


def _iso(moment: float | None) -> str | None:
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
