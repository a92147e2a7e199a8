"""Check of the login itself, by what its files and claims tell; nothing is sent."""

from __future__ import annotations

from grok_oauth_proxy.cli.checks.finding import Finding, cause_and_fix, note, ok, wrong
from grok_oauth_proxy.cli.logins import Login
from grok_oauth_proxy.cli.terminal import duration
from grok_oauth_proxy.credentials.messages import DOUBTFUL


def check_grant(login: Login, now: float) -> list[Finding]:
    """Whether the login a start would use is alive at wall time `now`, as far as it can be known."""
    whose = {"own": "The proxy's own login", "hermes": "Hermes' login"}.get(login.source, "The API key")
    if login.problem and login.source == "hermes" and login.grant is None:
        return [note("grant", "There is no login to look at.")]
    if login.problem:
        cause, fix = cause_and_fix(login.problem[1])
        return [wrong("grant", cause, fix or "Sign in again.")]
    if login.instead_of:
        cause, fix = cause_and_fix(login.instead_of[1])
        return [wrong("grant", f"Hermes' login is used in place of the proxy's own. {cause}", fix)]
    if login.grant is None:
        return [note("grant", f"{whose} is used; there is no token that could expire.")]
    if login.sent_at is not None:
        cause, fix = cause_and_fix(DOUBTFUL)
        return [note("grant", cause, fix)]
    if login.grant.token.expires_at is None:
        return [ok("grant", f"{whose} is used; its access token does not say when it expires.")]
    left = login.grant.token.remaining(now)
    if left <= 0:
        sentence = (
            f"{whose} is used; its access token expired {duration(left)} ago, and is refreshed by the proxy."
        )
        return [ok("grant", sentence)]
    return [ok("grant", f"{whose} is used; its access token expires in {duration(left)}.")]
