"""Which addresses may receive the user's tokens.

A bearer or a refresh token leaves this machine only over https to x.ai or a host below it. Loopback over
plain http is allowed on request, for tests and the demo. Everything else is refused, wherever the address
came from: a setting, a discovery document, a file.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urlsplit

_TRUSTED = re.compile(r"([a-z0-9-]{1,63}\.)*x\.ai")


class UntrustedOrigin(ValueError):
    """The address may not receive tokens; the text says why, without repeating credentials in it."""


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """True for `localhost`, names below it, 127.0.0.0/8 and ::1 (brackets allowed)."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def trusted_url(url: str, *, allow_loopback: bool) -> str:
    """Return `url` without a trailing slash, or raise `UntrustedOrigin`."""
    if not all(0x20 < ord(character) < 0x7F and character not in "\\?#%@" for character in url):
        raise UntrustedOrigin("it must be plain: no credentials, query, fragment, escapes or blanks")
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").lower().rstrip("."), parts.port
    except ValueError:
        raise UntrustedOrigin("it is not a URL") from None
    if allow_loopback and parts.scheme in ("http", "https") and is_loopback(host):
        return url.rstrip("/")
    if parts.scheme != "https" or not _TRUSTED.fullmatch(host):
        raise UntrustedOrigin("only https addresses on x.ai or *.x.ai may receive your tokens")
    return url.rstrip("/")
