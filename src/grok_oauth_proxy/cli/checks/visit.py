"""One GET request, step by step, so that a failure says which step it was: name, connection, TLS, answer.

Law: it leaves this machine as the proxy does, through the same egress proxy, with the same certificates.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import threading
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

from grok_oauth_proxy.cli.checks.finding import cause_and_fix
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.egress import EgressRefused, egress_proxy, tls_context, tunnel
from grok_oauth_proxy.errors import ConfigurationError

_STEP: Final = 4.0
"""Seconds for each step."""
_WHOLE: Final = 6.0
_MAX_BODY: Final = 64 * 1024
_EGRESS: Final = "Correct HTTPS_PROXY or ALL_PROXY, or name the host in NO_PROXY."
_NETWORK: Final = "Check the network. Behind an egress proxy, set HTTPS_PROXY."
_CLOCK_CODES: Final = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED (verify(1))."""
_NAME_CODES: Final = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


class Failed(Exception):
    """A step failed: what happened, and what to do about it."""

    def __init__(self, sentence: str, fix: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `at` is the wall time between question and answer. `way` names the egress proxy, if any."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes = field(repr=False)
    at: float
    way: str

    @property
    def is_page(self) -> bool:
        """HTML or a redirect, where JSON was to be: somebody else answers."""
        html = "html" in self.headers.get("content-type", "") or self.body.lstrip()[:1] == b"<"
        return html or 300 <= self.status < 400

    @property
    def json(self) -> dict[str, Any]:
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def skew(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the server's Date."""
        try:
            date = parsedate_to_datetime(self.headers.get("date", ""))
        except (TypeError, ValueError):
            return None
        return self.at - date.timestamp() - 0.5  # a Date has whole seconds, cut off


def visit(url: str, clock: Clock, *, bearer: str | None = None) -> Reply:
    """GET `url` within `_WHOLE` seconds. Raises `Failed`."""
    # In a thread of its own, because a name that is not resolved cannot be given up in time.
    going = _Visit(url, clock, bearer)
    thread = threading.Thread(target=going.run, daemon=True)
    thread.start()
    thread.join(_WHOLE)
    if going.failure:
        raise going.failure
    if going.reply is None:
        raise Failed(f"{going.step} took longer than {_WHOLE:.0f} s.", _NETWORK)
    return going.reply


class _Visit:
    def __init__(self, url: str, clock: Clock, bearer: str | None) -> None:
        self._url, self._clock, self._bearer = url, clock, bearer
        parts = urlsplit(url)
        self._host, self._netloc = parts.hostname or "", parts.netloc
        self._is_tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self.step = "The beginning"
        self.reply: Reply | None = None
        self.failure: Failed | None = None

    def run(self) -> None:
        try:
            self.reply = self._go()
        except Failed as failure:
            self.failure = failure

    def _go(self) -> Reply:
        try:
            proxy = egress_proxy(self._url)
        except ConfigurationError as error:
            raise Failed(*cause_and_fix(error.message)) from None
        way = ""
        if proxy:
            parts = urlsplit(proxy)
            way = f"{parts.hostname}:{parts.port}"  # without the login in it
            sock = self._tunnel(proxy, way)
        else:
            sock = self._connect()
        with sock:
            sock.settimeout(_STEP)
            with self._secure(sock) as connection:
                return self._ask(connection, way)

    def _connect(self) -> socket.socket:
        self.step = f"Looking up the name {self._host}"
        try:
            addresses = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise Failed(f"DNS: {self._host} was not found.", _NETWORK) from None
        self.step = f"The connection to {self._host}"
        reason = ""
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(_STEP)
            try:
                sock.connect(address)
            except OSError as error:
                sock.close()
                reason = error.strerror or "no answer"
                continue
            return sock
        raise Failed(f"Connecting: {self._host} port {self._port} gives no connection ({reason}).", _NETWORK)

    def _tunnel(self, proxy: str, way: str) -> socket.socket:
        self.step = f"The connection by way of the egress proxy {way}"
        try:
            return asyncio.run(self._open_tunnel(proxy))
        except EgressRefused:
            sentence = f"Egress proxy: {way} refuses to connect to {self._host}."
            raise Failed(sentence, f"It may want another login. {_EGRESS}") from None
        except (OSError, UnicodeError):
            raise Failed(f"Egress proxy: {way} does not answer.", _EGRESS) from None

    async def _open_tunnel(self, proxy: str) -> socket.socket:
        async with asyncio.timeout(_STEP):
            return await tunnel(proxy, self._host, self._port)

    def _secure(self, sock: socket.socket) -> socket.socket:
        if not self._is_tls:
            return sock
        self.step = f"The TLS handshake with {self._host}"
        try:
            return tls_context().wrap_socket(sock, server_hostname=self._host)
        except ssl.SSLCertVerificationError as error:
            raise _distrusted(self._host, error) from None
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or "no answer"
            raise Failed(f"TLS: the handshake with {self._host} failed ({reason}).", _NETWORK) from None

    def _ask(self, sock: socket.socket, way: str) -> Reply:
        self.step = f"The answer of {self._host}"
        # Our own socket is used, so that neither proxies nor redirects are followed.
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.sock = sock
        headers = {"host": self._netloc, "accept": "application/json", "connection": "close"}
        if self._bearer:
            headers["authorization"] = f"Bearer {self._bearer}"
        began = self._clock.wall()
        try:
            parts = urlsplit(self._url)
            connection.request("GET", parts.path or "/", headers=headers)
            answer = connection.getresponse()
            at = (began + self._clock.wall()) / 2
            return Reply(answer.status, answer.headers, answer.read(_MAX_BODY), at, way)
        except (http.client.HTTPException, OSError) as error:
            kind = "gave no answer in time" if isinstance(error, TimeoutError) else "broke off"
            raise Failed(f"HTTP: {self._host} {kind}.", _NETWORK) from None


def _distrusted(host: str, error: ssl.SSLCertVerificationError) -> Failed:
    reason = error.verify_message.rstrip(".")
    sentence = f"TLS: the certificate of {host} is not accepted ({reason})."
    if error.verify_code in _CLOCK_CODES:
        return Failed(sentence, "Check this machine's date and time.")
    if error.verify_code in _NAME_CODES:
        return Failed(sentence, "Somebody else answers in its place: a captive portal, or a wrong DNS entry.")
    fix = (
        "Where a company looks into TLS, set SSL_CERT_FILE to its certificates. Else do not use this network."
    )
    return Failed(sentence, fix)
