"""Who may come in. Pure: a request's head in, an error or nothing out.

Law: no web page may spend this user's quota. A foreign page betrays itself by its Origin, by Sec-Fetch-Site,
or, when its host name was rebound to this machine, by the Host it asked for.
"""

from __future__ import annotations

import hmac
import re
from functools import lru_cache

from grok_oauth_proxy.asgi import Scope
from grok_oauth_proxy.errors import ClientError
from grok_oauth_proxy.origins import is_loopback
from grok_oauth_proxy.proxy.headers import KEY_SUBPROTOCOL, Headers, first_values, subprotocols
from grok_oauth_proxy.proxy.key_ring import Guest, KeyRing
from grok_oauth_proxy.proxy.target import is_api_path

_OWN_SITES = (b"none", b"same-origin")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(:[0-9]{1,5})?")


class WrongKey(ClientError):
    """The proxy's own key is missing or wrong."""

    kind = "authentication_error"
    status = 401


class ForeignOrigin(ClientError):
    """The request comes from where it may not come from."""

    kind = "permission_error"
    status = 403


class FrontDoor:
    """`bound_host` is where the proxy listens; beyond loopback a key is asked for outside /v1 too.

    `api_key` opens, and so does each key of `ring`, of which `admit` tells whose it was.
    """

    def __init__(
        self,
        *,
        api_key: str | None,
        ring: KeyRing,
        allowed_hosts: tuple[str, ...],
        allowed_origins: tuple[str, ...],
        bound_host: str,
    ) -> None:
        self._api_key = api_key.encode() if api_key else None
        self._ring = ring
        self._allowed_hosts = frozenset(allowed_hosts)
        self._allowed_origins = frozenset(allowed_origins)
        self._bound_host = bound_host.lower()
        self._everywhere = not is_loopback(bound_host)

    def admit(self, scope: Scope) -> Guest | None:
        """Raise `ClientError` unless the request may come in; whose named key it brings, if it does."""
        headers: Headers = scope["headers"]
        first = first_values(headers)
        host = self._check_host(scope, headers, first)
        if scope["method"].upper() == "TRACE":
            # Its answer is the request as it came (RFC 9110 §9.3.8): it would show the client our bearer.
            raise ClientError("TRACE is not forwarded. Use GET.", code="not_implemented", status=501)
        if b"origin" in first or (first.get(b"sec-fetch-site") or b"none") not in _OWN_SITES:
            self._check_origin(headers, f"{scope['scheme']}://{host}")
        if not (self._everywhere or is_api_path(scope["raw_path"])):
            return None
        self._ring.look()
        if not (self._api_key or self._ring.demanded):
            return None
        return self._check_key(headers)

    def _check_host(self, scope: Scope, headers: Headers, first: dict[bytes, bytes]) -> str:
        value = first.get(b"host")
        if value is None and scope["http_version"] == "1.0":
            return ""
        repeated = len(first) < len(headers) and [name for name, _ in headers].count(b"host") > 1
        named = None if value is None or repeated else _host_and_name(value)
        if named is None:
            raise ClientError("Send exactly one valid Host header.", code="bad_host")
        host, name = named
        bound = (scope["server"] or ("",))[0].removeprefix("::ffff:")
        if is_loopback(name) or name in (bound, self._bound_host) or {name, host} & self._allowed_hosts:
            return host
        raise ClientError(
            "This proxy does not answer to that host name. Use 127.0.0.1, or add the name to "
            "PROXY_ALLOWED_HOSTS.",
            code="host_not_allowed",
            status=421,
        )

    def _check_origin(self, headers: Headers, own: str) -> None:
        """What comes from a web page must come from a known one, or from the `own` origin."""
        origins = {value.decode("latin-1").lower() for name, value in headers if name == b"origin"}
        if not origins or origins - self._allowed_origins - {own}:
            raise ForeignOrigin(
                "Web pages may not use this proxy. If this page is yours, add its origin to "
                "PROXY_ALLOWED_ORIGINS.",
                code="origin_not_allowed",
            )

    def _check_key(self, headers: Headers) -> Guest | None:
        offered = [key for name, value in headers for key in _offered_keys(name, value)]
        for key in offered:
            if (guest := self._ring.find(key)) is not None:
                return guest
        expected = self._api_key
        # Every value is compared, so that the time tells nothing about which one was close.
        if not (expected and sum(hmac.compare_digest(key, expected) for key in offered)):
            raise WrongKey(
                "The proxy's key is missing or wrong. Send the value of PROXY_API_KEY, or a key made with "
                "`grok-oauth-proxy keys add`, as your API key (Authorization: Bearer, X-Api-Key or "
                "X-Proxy-Api-Key).",
                code="invalid_api_key",
            )
        return None


@lru_cache(maxsize=64)
def _host_and_name(value: bytes) -> tuple[str, str] | None:
    """A Host header in lower case, and the name or address in it; None if it is not valid."""
    host = value.decode("latin-1").lower()
    match = _HOST.fullmatch(host)
    return (host, match[1].strip("[]").rstrip(".")) if match else None


def _offered_keys(name: bytes, value: bytes) -> list[bytes]:
    if name in (b"x-api-key", b"x-proxy-api-key"):
        return [value]
    if name == b"authorization" and value[:7].lower() == b"bearer ":
        return [value[7:].strip()]
    if name == b"sec-websocket-protocol":
        keys = [offer for offer in subprotocols(value) if offer.startswith(KEY_SUBPROTOCOL)]
        return [key.removeprefix(KEY_SUBPROTOCOL) for key in keys]
    return []
