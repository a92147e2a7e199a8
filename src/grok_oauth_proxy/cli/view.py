"""What `status` shows, as one frozen value: told by the running proxy, or else read from its files.

Law: what a running proxy does not tell, because it is older, is unknown and never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from grok_oauth_proxy.cli.checks.finding import cause_and_fix
from grok_oauth_proxy.cli.logins import Login
from grok_oauth_proxy.cli.running import Absent, Running, base_url
from grok_oauth_proxy.credentials.messages import HERMES, OWN

HEALTHY: Final = frozenset({"ok", "degraded"})
_TOLD: Final = ("owner", "account", "last_rejection", "rate_limits", "api_key_fallback")
"""Fields of /health that came with later versions."""


@dataclass(frozen=True, slots=True)
class View:
    """The object that `status --json` prints. Times are ISO 8601 in UTC, or seconds.

    `status` is /health's (ok, degraded, unauthenticated, unavailable, upstream_failing), or why there is
    none (not_running, no_answer, other_program, wrong_key); `message` says then what to do. `unknown` names
    the fields a running proxy does not tell.
    """

    running: bool
    status: str
    message: str | None
    address: str | None
    base_url: str | None
    version: str | None
    credential_source: str | None
    owner: str | None
    account: Mapping[str, Any] | None
    token_expires_at: str | None
    token_seconds_to_expiry: float | None
    last_refresh: Mapping[str, Any] | None
    last_rejection: Mapping[str, Any] | None
    rate_limits: Mapping[str, Any] | None
    api_key_fallback: Mapping[str, Any] | None
    problem: Mapping[str, Any] | None
    unknown: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered, as far as is known."""
        return self.running and self.status in HEALTHY

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def view_of_running(proxy: Running) -> View:
    report = proxy.report
    refresh = _mapping(report, "oauth_refresh")
    return View(
        running=True,
        status=str(report["status"]),
        message=None,
        address=proxy.address,
        base_url=base_url(proxy.address),
        version=_text(report, "version"),
        credential_source=_text(report, "credential_source"),
        owner=_text(report, "owner"),
        account=_mapping(report, "account"),
        token_expires_at=_text(report, "token_expires_at"),
        token_seconds_to_expiry=_number(report, "token_seconds_to_expiry"),
        last_refresh=_last_refresh(refresh) if refresh else None,
        last_rejection=_mapping(report, "last_rejection"),
        rate_limits=_mapping(report, "rate_limits"),
        api_key_fallback=_mapping(report, "api_key_fallback"),
        problem=_mapping(report, "problem"),
        unknown=tuple(name for name in _TOLD if name not in report),
    )


def view_of_files(absent: Absent, login: Login, now: float) -> View:
    """What a start would find at wall time `now`, while no proxy can be asked."""
    expires_at = login.grant.token.expires_at if login.grant else None
    running = absent.code == "wrong_key"
    problem = login.problem or login.instead_of
    return View(
        running=running,
        status=absent.code,
        message=_next_step(absent, login),
        address=absent.address,
        base_url=base_url(absent.address) if running and absent.address else None,
        version=None,
        credential_source=login.source,
        owner=login.owner,
        account=login.account,
        token_expires_at=_iso(expires_at),
        token_seconds_to_expiry=None if expires_at is None else round(expires_at - now, 1),
        last_refresh=_last_refresh(login.last_refresh) if login.last_refresh else None,
        last_rejection=None,
        rate_limits=None,
        api_key_fallback=None,
        problem=dict(zip(("code", "message"), problem, strict=True)) if problem else None,
    )


def _next_step(absent: Absent, login: Login) -> str:
    """A start is refused while nobody is signed in, so that comes first."""
    if not login.is_missing or absent.code == "wrong_key":
        return absent.message
    cause, start = cause_and_fix(absent.message)
    sign_in = OWN.sign_in if login.source == "own" else f"{OWN.sign_in}, or with {HERMES.sign_in}"
    return f"{cause} Sign in with {sign_in}. Then {start[:1].lower()}{start[1:]}"


def _last_refresh(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "at": _text(told, "last_refresh_at"),
        "status": _text(told, "last_refresh_status"),
        "error_class": _text(told, "last_refresh_error_class"),
        "successes": _number(told, "refresh_success_count"),
        "failures": _number(told, "refresh_failure_count"),
    }


def _iso(moment: float | None) -> str | None:
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _mapping(content: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = content.get(name)
    return value if isinstance(value, dict) else None


def _text(content: Mapping[str, Any], name: str) -> str | None:
    value = content.get(name)
    return value if isinstance(value, str) else None


def _number(content: Mapping[str, Any], name: str) -> float | None:
    value = content.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
