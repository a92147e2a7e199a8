"""Asks the proxy of this machine whether it uses a login, and whether the API takes it."""

from __future__ import annotations

import http.client
import json
import socket
import time
from datetime import datetime, timezone
from urllib.parse import urlsplit

from grok_oauth_proxy.address import read_address
from grok_oauth_proxy.moving.claims import moment
from grok_oauth_proxy.moving.document import Document
from grok_oauth_proxy.moving.files import Json
from grok_oauth_proxy.moving.keepers import Keeper
from grok_oauth_proxy.moving.pinning import pinned_context
from grok_oauth_proxy.moving.problems import Problem
from grok_oauth_proxy.moving.surroundings import Surroundings, proxy_certificate, proxy_key

_ADOPTED_WITHIN = 30.0
_POLL = 0.25
_ANSWERED_WITHIN = 30.0


def running_proxy(surroundings: Surroundings) -> str | None:
    """The URL of the proxy that runs here, None when none answers there.

    Raises `Problem` when it is not known by what it could be told from another program.
    """
    try:
        url = read_address(surroundings.address)
    except OSError:
        return None
    try:
        _get(url, "/health")
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return url


def deep_health(keeper: Keeper, document: Document, url: str) -> str:
    """Wait until the proxy uses this login, then have it ask the API; raise `Problem` when either fails."""
    deadline = time.monotonic() + _ADOPTED_WITHIN
    while not _in_use(report := _report(url, "/health"), keeper, document):
        if time.monotonic() > deadline:
            raise Problem(_not_in_use(report, keeper.source))
        time.sleep(_POLL)
    report = _report(url, "/health?deep=1")
    if report.get("status") not in ("ok", "degraded"):
        raise Problem(f"The proxy at {url} is {report.get('status')}. {_reason(report)}")
    return f"The proxy at {url} uses the login, and the API takes it."


def _in_use(report: Json, keeper: Keeper, document: Document) -> bool:
    """Whether the proxy uses this very link, or one that followed it."""
    if report.get("credential_source") != keeper.source:
        return False
    books = keeper.books()
    if books.is_spent(document.fingerprint):
        return True
    if keeper.source == "hermes":
        # The proxy notes there which login it took out of Hermes' store.
        return books.link == document.fingerprint
    return _expires(report, moment(document.tokens, "exp"))


def _expires(report: Json, expiry: float | None) -> bool:
    """Whether the token in use expires at `expiry`, in seconds since the epoch."""
    shown = report.get("token_expires_at")
    if not isinstance(shown, str) or expiry is None:
        return shown is None and expiry is None
    try:
        moment_shown = datetime.strptime(shown, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return False
    return abs(moment_shown.timestamp() - expiry) < 2


def _not_in_use(report: Json, source: str) -> str:
    used = report.get("credential_source")
    if used != source:
        return f"The proxy there uses another login ({used}). Restart it, or see CREDENTIAL_SOURCE there."
    return f"The proxy there does not use the login after {_ADOPTED_WITHIN:.0f} s. {_reason(report)}"


def _reason(report: Json) -> str:
    problem, upstream = report.get("problem"), report.get("upstream")
    if isinstance(problem, dict) and problem.get("message"):
        return str(problem["message"])
    if isinstance(upstream, dict):
        return f"The API said {upstream.get('status') or upstream.get('error')}."
    return "Look into its log."


def _report(url: str, path: str) -> Json:
    try:
        status, body = _get(url, path)
        report = json.loads(body)
    except (OSError, ValueError, http.client.HTTPException):
        raise Problem(f"The proxy at {url} gave no answer. Look into its log.") from None
    if status == 401:
        raise Problem(f"The proxy at {url} wants its key. Set PROXY_API_KEY in the environment there.")
    if not isinstance(report, dict):
        raise Problem(f"What answers at {url} is not the proxy. Look into its log.")
    return report


def _get(url: str, path: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path.startswith("/"):
        connection: http.client.HTTPConnection = _OverSocket(url[len("unix:") :])
    elif parts.scheme == "http" and parts.hostname:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_ANSWERED_WITHIN)
    elif parts.scheme == "https" and parts.hostname:
        certificate = proxy_certificate()
        if certificate is None:
            raise Problem(f"The proxy at {url} speaks TLS. Set PROXY_TLS_CERT in the environment there.")
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=_ANSWERED_WITHIN, context=pinned_context(certificate)
        )
    else:
        raise ValueError("no address of the proxy")
    key = proxy_key()
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        return answer.status, answer.read(1024 * 1024)
    finally:
        connection.close()


class _OverSocket(http.client.HTTPConnection):
    """Over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWERED_WITHIN)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWERED_WITHIN)
        self.sock.connect(self._path)
