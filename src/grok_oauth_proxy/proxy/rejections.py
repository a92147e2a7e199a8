"""Which rejection is which (facts: API), and what each means in plain words. Pure.

Law: only a stale token is answered by a refresh. Entitlement, billing, quota and content pass through.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from grok_oauth_proxy.events import UpstreamRejected

PEEKED_STATUSES: Final = frozenset({401, 402, 403, 429})
"""Statuses whose body decides what they mean."""

PEEK_LIMIT: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why the API refused. `kind` is a label from this file; `remedy` is the next step."""

    kind: str
    meaning: str
    remedy: str

    def told(self, path: bytes, at: float) -> UpstreamRejected:
        """The event of it; `path` as the client sent it, `at` in seconds, wall clock."""
        return UpstreamRejected(self.kind, self.meaning, self.remedy, path.decode("latin-1"), at)


STALE_TOKEN = Rejection(
    "stale_token",
    "The API did not accept the access token.",
    "A login's token is refreshed and the request sent again, by itself; a key or secret must be corrected.",
)
NO_CREDENTIALS = Rejection("no_credentials", "The API saw no credentials.", "Please report this as a bug.")
ENTITLEMENT = Rejection(
    "entitlement",
    "This account may not use the API: a standard subscription may lack it.",
    "Signing in again will not help; an API key from the xAI console does (billed separately): set "
    "XAI_API_KEY and API_KEY_FALLBACK=entitlement.",
)
SPENDING_LIMIT = Rejection(
    "spending_limit",
    "The team's spending limit is reached.",
    "Raise it in the xAI console or wait for its reset.",
)
PERMISSION = Rejection(
    "permission",
    "The account lacks permission for this model or endpoint.",
    "Choose another, or ask its admin.",
)
CONTENT = Rejection(
    "content", "The API refused the content as against its usage guidelines.", "Change the prompt."
)
QUOTA = Rejection(
    "quota", "The subscription's included usage is used up for now.", "It comes back within 24 hours."
)
RATE_LIMIT = Rejection("rate_limit", "Too many requests at once.", "Slow down and try again shortly.")
OTHER = Rejection("other", "The API refused the request.", "Its answer says why.")

_WBITS: Final = {b"": (), b"identity": (), b"gzip": (47,), b"x-gzip": (47,), b"deflate": (47, -15)}
"""How zlib is told about each coding: 32 + 15 takes zlib and gzip headers alike; bare deflate has none."""

_CONTENT: Final = ("safety_check", "violates usage guidelines")
_STALE: Final = ("unauthenticated:", "bad-credentials", "access token could not be validated")
# Searched in this order: the message of a stale token may also speak of permission.
_MARKERS: Final = (
    ("run out of available resources", ENTITLEMENT),
    ("do not have an active grok subscription", ENTITLEMENT),
    ("spending-limit", SPENDING_LIMIT),
    ("free-usage-exhausted", QUOTA),
    ("does not have permission", PERMISSION),
    ("permission-denied", PERMISSION),
)


def classify(status: int, body: bytes, content_encoding: bytes | None) -> Rejection | None:
    """What a refusal means; None when the status is not one of `PEEKED_STATUSES`."""
    if status not in PEEKED_STATUSES:
        return None
    if not is_readable(content_encoding):
        return STALE_TOKEN if status == 401 else OTHER
    text = _plain(body, content_encoding).decode("utf-8", "replace").lower()
    if status == 401:
        return NO_CREDENTIALS if "no-credentials" in text else STALE_TOKEN
    # A refusal of the content may quote the prompt, whatever that says.
    if any(marker in text for marker in _CONTENT):
        return CONTENT
    if status == 403 and any(marker in text for marker in _STALE):
        return STALE_TOKEN
    found = next((rejection for marker, rejection in _MARKERS if marker in text), None)
    if found is None and status == 429:
        return RATE_LIMIT
    if found is ENTITLEMENT and status != 403:
        return QUOTA
    return found or OTHER


def is_readable(content_encoding: bytes | None) -> bool:
    """Whether a body in this coding can be looked into."""
    return _coding(content_encoding) in _WBITS


def _coding(content_encoding: bytes | None) -> bytes:
    return (content_encoding or b"").strip().lower()


def _plain(body: bytes, content_encoding: bytes | None) -> bytes:
    for wbits in _WBITS[_coding(content_encoding)]:
        try:
            return zlib.decompressobj(wbits).decompress(body, PEEK_LIMIT)
        except zlib.error:
            continue
    return body
