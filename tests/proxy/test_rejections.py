"""Which refusal is which: only a stale token may lead to a refresh."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

from grok_oauth_proxy.proxy.rejections import (
    CONTENT,
    ENTITLEMENT,
    NO_CREDENTIALS,
    OTHER,
    PEEK_LIMIT,
    PERMISSION,
    QUOTA,
    RATE_LIMIT,
    SPENDING_LIMIT,
    STALE_TOKEN,
    Rejection,
    classify,
)
from grok_oauth_proxy.sim.rejections import KINDS, cloudflare_page

NOT_VALIDATED = "The OAuth2 access token could not be validated."
NO_PERMISSION = "The caller does not have permission to execute the specified operation"
NO_SUBSCRIPTION = (
    "You have either run out of available resources or do not have an active Grok subscription. "
    "Manage subscriptions at https://grok.com"
)
UNSAFE = "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"


def flat(code: str, error: str) -> bytes:
    return json.dumps({"code": code, "error": error}).encode()


def nested(code: str, message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "x", "code": code, "param": None}}).encode()


ROWS: dict[str, tuple[int, str, str, Rejection]] = {
    "401-stale": (401, "unauthenticated:bad-credentials", NOT_VALIDATED, STALE_TOKEN),
    "401-anything": (401, "whatever", "Say please", STALE_TOKEN),
    "401-no-credentials": (401, "no-credentials", "Send a token", NO_CREDENTIALS),
    "401-entitlement-text": (401, NO_PERMISSION, NO_SUBSCRIPTION, STALE_TOKEN),
    "403-bad-credentials": (403, "bad-credentials", "x", STALE_TOKEN),
    "403-unauthenticated": (403, "unauthenticated:expired", "x", STALE_TOKEN),
    "403-not-validated": (403, "x", NOT_VALIDATED, STALE_TOKEN),
    "403-wke": (403, NO_PERMISSION, "x [WKE=unauthenticated:bad-credentials]", STALE_TOKEN),
    "403-entitlement": (403, NO_PERMISSION, NO_SUBSCRIPTION, ENTITLEMENT),
    "403-spending-limit": (403, "personal-team-blocked:spending-limit", "Reached", SPENDING_LIMIT),
    "403-permission": (403, "x", "Your team does not have permission to use grok-4-heavy", PERMISSION),
    "403-permission-denied": (403, "permission-denied", "x", PERMISSION),
    "403-content": (403, NO_PERMISSION, UNSAFE, CONTENT),
    "403-content-sentence": (403, "x", "Content violates usage guidelines", CONTENT),
    "403-safety-check": (403, "x", "SAFETY_CHECK_TYPE_CSAM", CONTENT),
    "403-other": (403, "teapot", "I am one", OTHER),
    "403-unauthenticated-without-colon": (403, "x", "You are unauthenticated", OTHER),
    "402-spending-limit": (402, "personal-team-blocked:spending-limit", "Used up", SPENDING_LIMIT),
    "402-quota": (402, "subscription:free-usage-exhausted", "x", QUOTA),
    "402-other": (402, "pay", "Now", OTHER),
    "402-stale-text": (402, "x", NOT_VALIDATED, OTHER),
    "429-quota": (429, "subscription:free-usage-exhausted", "24 hours", QUOTA),
    "429-spending-limit": (429, "personal-team-blocked:spending-limit", "x", SPENDING_LIMIT),
    "429-rate": (429, "Some resource has been exhausted", "Slow down", RATE_LIMIT),
    "429-anything": (429, "x", "y", RATE_LIMIT),
    "429-stale-text": (429, "bad-credentials", NOT_VALIDATED, RATE_LIMIT),
}


@pytest.mark.parametrize(("status", "code", "text", "kind"), ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("shape", [flat, nested], ids=["flat", "nested"])
def test_row(status: int, code: str, text: str, kind: Rejection, shape: object) -> None:
    """Each row of the table is told in either shape and in any case."""
    body = flat(code, text) if shape is flat else nested(code, text)
    for written in (body, body.upper(), body.lower(), b"\xef\xbb\xbf" + body):
        assert classify(status, written, None) is kind


@pytest.mark.parametrize(("status", "code", "text", "kind"), ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "bare-deflate"])
def test_compressed(status: int, code: str, text: str, kind: Rejection, coding: str) -> None:
    """A compressed refusal is told as a plain one, also when its end has not come yet."""
    body = flat(code, text)
    bare = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(body),
        "x-gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "bare-deflate": bare.compress(body) + bare.flush(),
    }[coding]
    name = coding.removeprefix("bare-").encode()
    assert classify(status, packed, name) is kind
    assert classify(status, packed, b" " + name.upper() + b" ") is kind
    if coding in ("gzip", "x-gzip"):
        assert classify(status, packed[:-8], name) is kind  # without its checksum


SIMULATED = {
    "stale-401": STALE_TOKEN,
    "no-credentials": NO_CREDENTIALS,
    "stale-403-flat": STALE_TOKEN,
    "stale-403-nested": STALE_TOKEN,
    "stale-403-wke": STALE_TOKEN,
    "entitlement": ENTITLEMENT,
    "spending-limit": SPENDING_LIMIT,
    "permission-denied": PERMISSION,
    "content": CONTENT,
    "quota-402": SPENDING_LIMIT,
    "quota-429": QUOTA,
    "rate-429": RATE_LIMIT,
    "bare-string": None,
    "plain-text": None,
    "cloudflare-html": None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_simulated(kind: str) -> None:
    """Every refusal the simulator can give is told for what it is."""
    reply = KINDS[kind]
    assert classify(reply.status, reply.body, None) is SIMULATED[kind]


ODD: dict[str, tuple[int, bytes, bytes | None, Rejection]] = {
    "401-empty": (401, b"", None, STALE_TOKEN),
    "401-html": (401, cloudflare_page(401), None, STALE_TOKEN),
    "401-unreadable": (401, b"\x00\x01", b"br", STALE_TOKEN),
    "403-empty": (403, b"", None, OTHER),
    "403-html": (403, cloudflare_page(403), None, OTHER),
    "403-bare-string": (403, b'"bad-credentials"', None, STALE_TOKEN),
    "403-plain-text": (403, b"unauthenticated: no", None, STALE_TOKEN),
    "403-not-utf-8": (403, b"\xff\xfe bad-credentials \x80", None, STALE_TOKEN),
    "403-not-gzip": (403, b"bad-credentials", b"gzip", STALE_TOKEN),
    "403-unknown-coding": (403, b"bad-credentials", b"zstd", OTHER),
    "403-bomb": (403, gzip.compress(b"x" * 50_000_000), b"gzip", OTHER),
    "429-empty": (429, b"", None, RATE_LIMIT),
    "429-html": (429, cloudflare_page(429), None, RATE_LIMIT),
}


@pytest.mark.parametrize(("status", "body", "coding", "kind"), ODD.values(), ids=ODD.keys())
def test_odd(status: int, body: bytes, coding: bytes | None, kind: Rejection) -> None:
    """Bodies of no known shape are told too, and none of them breaks anything."""
    assert classify(status, body, coding) is kind


@pytest.mark.parametrize("status", [200, 202, 301, 400, 404, 405, 413, 415, 422, 500, 502, 503, 530])
def test_not_a_refusal(status: int) -> None:
    """Other statuses mean nothing here, whatever their body says."""
    assert classify(status, flat("unauthenticated:bad-credentials", NOT_VALIDATED), None) is None


def test_first_meaning_counts() -> None:
    """Where several markers meet, the one that explains most is taken."""
    assert classify(403, flat(NO_PERMISSION, NO_SUBSCRIPTION), None) is ENTITLEMENT
    assert classify(403, flat(NO_PERMISSION, UNSAFE), None) is CONTENT
    assert classify(403, flat(NO_PERMISSION, f"{NOT_VALIDATED} {NO_PERMISSION}"), None) is STALE_TOKEN
    assert classify(403, flat("spending-limit", NO_PERMISSION), None) is SPENDING_LIMIT


SPOKEN = [
    "bad-credentials",
    "unauthenticated:",
    "The access token could not be validated",
    "[WKE=unauthenticated:x]",
]


@pytest.mark.parametrize("words", SPOKEN)
@pytest.mark.parametrize("shape", [flat, nested], ids=["flat", "nested"])
def test_the_user_cannot_ask_for_a_refresh(words: str, shape: object) -> None:
    """A refusal of the content stays one, though it quotes a prompt that speaks of tokens."""
    text = f"{UNSAFE}. Prompt: {words}"
    body = flat(NO_PERMISSION, text) if shape is flat else nested(NO_PERMISSION, text)
    assert classify(403, body, None) is CONTENT


@pytest.mark.parametrize("words", SPOKEN)
@pytest.mark.parametrize("status", [402, 429])
def test_other_statuses_cannot_ask_for_a_refresh(status: int, words: str) -> None:
    """Outside 401 and 403 no text makes a token stale."""
    assert classify(status, flat("x", words), None) is not STALE_TOKEN


def test_not_more_than_needed_is_unpacked() -> None:
    """Of a compressed refusal no more is unpacked than would be looked at plain."""
    late = gzip.compress(b"x" * PEEK_LIMIT + b"bad-credentials")
    assert classify(403, late, b"gzip") is OTHER


def test_meanings_end_with_a_next_step() -> None:
    """Meanings and remedies are whole sentences, and that of entitlement says that a login does not help."""
    kinds = [STALE_TOKEN, NO_CREDENTIALS, ENTITLEMENT, SPENDING_LIMIT, PERMISSION, CONTENT, QUOTA, RATE_LIMIT]
    assert len({kind.kind for kind in kinds}) == len(kinds)
    assert all(kind.meaning.endswith(".") and kind.remedy.endswith(".") for kind in kinds)
    assert "Signing in again will not help" in ENTITLEMENT.remedy
