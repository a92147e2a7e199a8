"""A `View` in words: one line for each thing, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from grok_oauth_proxy.cli.running import socket_path
from grok_oauth_proxy.cli.terminal import duration, plain
from grok_oauth_proxy.cli.view import View
from grok_oauth_proxy.credentials.messages import NOBODY

_STYLES: Final = {"ok": "green", "degraded": "yellow"}
_SOURCES: Final = {"own": "the proxy's own", "hermes": "Hermes'", "api-key": "none: an API key is used"}
_UNKNOWN: Final = "unknown (this proxy's version does not tell)"


def panel(view: View, now: float) -> RenderableType:
    """Everything in `view`, at wall time `now`."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, text, style in _rows(view, now):
        grid.add_row(name, Text(plain(text), style))
    return Group(_headline(view), grid)


def _headline(view: View) -> Text:
    if view.running:
        version = f" {view.version}" if view.version else ""
        return Text(plain(f"grok-oauth-proxy{version} is running: {_place(view)}"), "bold")
    return Text("grok-oauth-proxy is not running.", "bold")


def _place(view: View) -> str:
    path = socket_path(view.address or "")
    return f"the Unix socket {path}" if path else str(view.base_url)


def _rows(view: View, now: float) -> Iterator[tuple[str, str, str]]:
    """Name, text and style of each line."""
    yield "Status", view.status.replace("_", " "), _STYLES.get(view.status, "red")
    if view.message:
        yield "Next step", view.message, ""
    if view.problem:
        yield "Problem", str(view.problem.get("message") or view.problem.get("code")), "red"
    if view.owner == NOBODY:
        yield "Login", NOBODY, ""
    else:
        yield from _login(view)
    yield "Last refresh", _refresh(view.last_refresh, now), ""
    if not view.running or view.message:
        return
    yield "Last rejection", _unless_unknown(view, "last_rejection", _rejection(view.last_rejection, now)), ""
    yield "Limits", _unless_unknown(view, "rate_limits", _limits(view.rate_limits, now)), ""
    yield "API key", _unless_unknown(view, "api_key_fallback", _fallback(view.api_key_fallback)), ""


def _login(view: View) -> Iterator[tuple[str, str, str]]:
    source = view.credential_source or "unknown"
    yield "Login", _SOURCES.get(source, source), ""
    if view.owner:
        yield "Owner", view.owner, ""
    yield "Account", _account(view), ""
    yield "Access token", _expiry(view), ""


def _unless_unknown(view: View, name: str, text: str) -> str:
    return _UNKNOWN if name in view.unknown else text


def _account(view: View) -> str:
    account = view.account or {}
    tier, principal = account.get("tier"), account.get("principal_type")
    known = [f"tier {tier}"] if tier is not None else []
    known += [f"signed in as {principal}"] if principal else []
    return ", ".join(known) or "its tier is not known"


def _expiry(view: View) -> str:
    seconds = view.token_seconds_to_expiry
    if seconds is None:
        return "its expiry is not known" if view.credential_source != "api-key" else "none is used"
    moment = _moment(view.token_expires_at)
    at = f" ({moment:%a %d %b, %H:%M})" if moment else ""
    if seconds <= 0:
        return f"expired {duration(seconds)} ago{at}"
    return f"expires in {duration(seconds)}{at}"


def _refresh(refresh: Mapping[str, Any] | None, now: float) -> str:
    if refresh is None or refresh["at"] is None:
        return "none yet"
    went = refresh["status"] or "unknown"
    if refresh["error_class"]:
        went += f" ({refresh['error_class']})"
    counted = ""
    if refresh["successes"] is not None and refresh["failures"] is not None:
        counted = f"; since its start {refresh['successes']} succeeded, {refresh['failures']} failed"
    return f"{_ago(refresh['at'], now)}: {went}{counted}"


def _rejection(rejection: Mapping[str, Any] | None, now: float) -> str:
    if rejection is None:
        return "none"
    told = [_ago(rejection.get("at"), now) + ": " + str(rejection.get("kind", "unknown")).replace("_", " ")]
    told += [str(rejection[name]).strip() for name in ("meaning", "remedy") if rejection.get(name)]
    return ". ".join(told[:1]) + ". " + " ".join(told[1:]) if len(told) > 1 else told[0]


def _limits(limits: Mapping[str, Any] | None, now: float) -> str:
    if limits is None:
        return "not told by the API so far"
    parts = []
    for what in ("requests", "tokens"):
        left, most = limits.get(f"remaining_{what}"), limits.get(f"limit_{what}")
        if isinstance(left, int | float):
            parts.append(f"{left:,} " + (f"of {most:,} " if isinstance(most, int | float) else "") + what)
    return (" and ".join(parts) or "nothing") + f" left ({_ago(limits.get('at'), now)})"


def _fallback(fallback: Mapping[str, Any] | None) -> str:
    if fallback is None:
        return "not used as a fallback"
    return f"answered {fallback.get('requests', 0)} requests that the login was not entitled to"


def _ago(at: object, now: float) -> str:
    moment = _moment(at)
    return f"{duration(now - moment.timestamp())} ago" if moment else "at an unknown time"


def _moment(at: object) -> datetime | None:
    """A time from the report, as local time: ISO 8601, or seconds since the epoch; None if it is neither."""
    try:
        if isinstance(at, str):
            return datetime.fromisoformat(at).astimezone()
        if isinstance(at, int | float):
            return datetime.fromtimestamp(at).astimezone()
    except (OverflowError, OSError, ValueError):
        return None
    return None
