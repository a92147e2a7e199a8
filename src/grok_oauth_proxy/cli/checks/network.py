"""Checks of the way to xAI: both servers, this machine's clock, and what the API says to the token."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from grok_oauth_proxy.cli.checks.finding import Finding, cause_and_fix, note, ok, wrong
from grok_oauth_proxy.cli.checks.visit import Failed, Reply, visit
from grok_oauth_proxy.cli.logins import Login
from grok_oauth_proxy.cli.terminal import duration
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.proxy.rejections import STALE_TOKEN, classify
from grok_oauth_proxy.settings import Settings

_TOLERATED: Final = 60.0
"""Seconds. More than that would move refreshes of a 15-minute token far off."""
_PORTAL: Final = (
    "A captive portal, a filter or a firewall answers in its place: open a web page and sign in to the "
    "network, or ask its admin."
)
_STATUS_PAGE: Final = "If this lasts, look at https://status.x.ai."


def check_authorization_server(settings: Settings, clock: Clock) -> list[Finding]:
    """The authorization server gives its discovery document; its Date is compared with the clock."""
    url = f"{settings.xai_oauth_issuer}/.well-known/openid-configuration"
    try:
        reply = visit(url, clock)
    except Failed as failure:
        unknown = note("clock", "It cannot be compared: the authorization server is not reached.")
        return [wrong("auth-server", failure.sentence, failure.fix), unknown]
    host = urlsplit(url).hostname
    if reply.is_page:
        return [
            _page("auth-server", url, reply),
            note("clock", "It cannot be compared with a page of others."),
        ]
    if reply.status != 200 or not reply.json:
        sentence = f"{host} is reached, but answers with HTTP {reply.status} where its document should be."
        return [wrong("auth-server", sentence, _STATUS_PAGE), _clock(reply)]
    return [ok("auth-server", _reached(url, reply)), _clock(reply)]


def check_api(settings: Settings, clock: Clock) -> list[Finding]:
    """The API answers, without a token."""
    url = f"{settings.xai_base_url}/models"
    try:
        reply = visit(url, clock)
    except Failed as failure:
        return [wrong("api", failure.sentence, failure.fix)]
    if reply.is_page:
        return [_page("api", url, reply)]
    if reply.status >= 500:
        return [wrong("api", f"The API is reached, but answers with HTTP {reply.status}.", _STATUS_PAGE)]
    return [ok("api", _reached(url, reply))]


def _reached(url: str, reply: Reply) -> str:
    way = f" by way of the egress proxy {reply.way}" if reply.way else ""
    tls = "DNS, TLS and HTTP work" if url.startswith("https") else "HTTP works"
    return f"{urlsplit(url).hostname} is reached{way}: {tls}."


def _page(name: str, url: str, reply: Reply) -> Finding:
    host = urlsplit(url).hostname
    return wrong(name, f"A web page (HTTP {reply.status}) comes where {host} would answer.", _PORTAL)


def _clock(reply: Reply) -> Finding:
    skew = reply.skew
    if skew is None:
        return note("clock", "The server's answer has no Date to compare it with.")
    if abs(skew) <= _TOLERATED:
        return ok("clock", f"This machine's clock is within {_TOLERATED:.0f} s of the server's.")
    way = "ahead of" if skew > 0 else "behind"
    fix = "Turn on time synchronisation (Linux: `timedatectl set-ntp true`)."
    return wrong("clock", f"This machine's clock is {duration(skew)} {way} the server's.", fix)


def check_online(settings: Settings, login: Login, clock: Clock) -> list[Finding]:
    """What the API says to the access token as it is; nothing is refreshed, and no usage is spent."""
    if login.grant is None:
        return [note("online", "There is no access token to ask the API with.")]
    token = login.grant.token
    if token.remaining(clock.wall()) <= 0:
        return [note("online", "The access token has expired, so that the API was not asked.", _START)]
    try:
        reply = visit(f"{settings.xai_base_url}/models", clock, bearer=token.bearer.get_secret_value())
    except Failed as failure:
        return [wrong("online", failure.sentence, failure.fix)]
    return [_judged(reply)]


_START: Final = "Start the proxy: it refreshes the token. If that fails, sign in again."


def _judged(reply: Reply) -> Finding:
    if reply.status == 200 and reply.json:
        return ok("online", "The API takes the access token.")
    encoding = reply.headers.get("content-encoding", "").encode("latin-1", "replace")
    rejection = classify(reply.status, reply.body, encoding or None)
    if rejection is STALE_TOKEN:
        return wrong("online", "The API does not accept the access token, though it has not expired.", _START)
    if rejection is not None:
        cause, fix = cause_and_fix(rejection.meaning)
        return wrong("online", f"HTTP {reply.status}, {rejection.kind}: {cause}", fix or _STATUS_PAGE)
    if reply.is_page:
        return wrong("online", f"A web page (HTTP {reply.status}) comes where the API would answer.", _PORTAL)
    return wrong("online", f"The API answers with HTTP {reply.status}.", _STATUS_PAGE)
