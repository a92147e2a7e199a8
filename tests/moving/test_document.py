"""The export document: what is believed, and the one sentence on what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from grok_oauth_proxy.credentials.token import read_token
from grok_oauth_proxy.moving.claims import client_id
from grok_oauth_proxy.moving.document import Document, is_trusted, parse
from grok_oauth_proxy.moving.problems import Problem
from grok_oauth_proxy.origins import UntrustedOrigin, trusted_url
from tests.sim.harness import Sim
from tests.test_origins import TRUSTED, UNTRUSTED

Change = Callable[[dict[str, Any]], object]


def good() -> dict[str, Any]:
    return {
        "version": 1,
        "provider": "xai-oauth",
        "client_id": "client-1",
        "token_endpoint": "https://auth.x.ai/oauth2/token",
        "tokens": {
            "access_token": "canary.access.token",
            "refresh_token": "canary-refresh",
            "id_token": "canary.id.token",
            "token_type": "Bearer",
            "expires_in": 900,
        },
    }


def with_token(**tokens: object) -> Change:
    return lambda document: document["tokens"].update(tokens)


def without(name: str) -> Change:
    return lambda document: document.pop(name)


BAD: dict[str, tuple[Change, str]] = {
    "provider": (lambda d: d.update(provider="openai"), "another provider"),
    "version": (lambda d: d.update(version=2), "another version than 1"),
    "version-true": (lambda d: d.update(version=True), "another version than 1"),
    "no-version": (without("version"), "The export lacks version"),
    "no-client": (without("client_id"), "The export lacks client_id"),
    "no-tokens": (without("tokens"), "The export lacks tokens"),
    "unknown": (lambda d: d.update(script="rm"), "unknown field script"),
    "strange": (lambda d: d.update({"canary-refresh": 1}), "unknown field with a strange name"),
    "client-null": (lambda d: d.update(client_id=None), "client_id must be a text"),
    "client-empty": (lambda d: d.update(client_id=""), "client_id is empty"),
    "client-long": (lambda d: d.update(client_id="x" * 257), "client_id is longer than 256"),
    "client-control": (lambda d: d.update(client_id="a\x1b[2Jb"), "client_id has control characters"),
    "tokens-list": (lambda d: d.update(tokens=[]), "tokens must be a JSON object"),
    "token-unknown": (with_token(cookie="x"), "tokens has an unknown field cookie"),
    "no-refresh": (lambda d: d["tokens"].pop("refresh_token"), "tokens lacks refresh_token"),
    "access-number": (with_token(access_token=1), "access_token must be a text"),
    "access-empty": (with_token(access_token=""), "access_token is empty"),
    "access-newline": (with_token(access_token="a\nHost: evil"), "access_token has control characters"),
    "access-blank": (with_token(access_token="a b"), "access_token has characters that can't"),
    "access-huge": (with_token(access_token="a" * 70000), "access_token is longer than 65536"),
    "id-not-ascii": (with_token(id_token="ä"), "id_token has characters that can't"),
    "refresh-null": (with_token(refresh_token=None), "refresh_token must be a text"),
    "refresh-blank": (with_token(refresh_token=" r"), "refresh_token has control characters, or blanks"),
    "refresh-surrogate": (with_token(refresh_token="\ud800"), "refresh_token has control characters"),
    "type": (with_token(token_type="MAC"), "token_type is not Bearer"),
    "lifetime-text": (with_token(expires_in="900"), "expires_in is not a number"),
    "lifetime-negative": (with_token(expires_in=-1), "expires_in is not a number"),
    "lifetime-true": (with_token(expires_in=True), "expires_in is not a number"),
    "endpoint-elsewhere": (lambda d: d.update(token_endpoint="https://x.ai.evil.com"), "may not receive"),
    "endpoint-http": (lambda d: d.update(token_endpoint="http://auth.x.ai/t"), "may not receive"),
    "endpoint-loopback": (lambda d: d.update(token_endpoint="http://127.0.0.1/t"), "may not receive"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(case: str) -> None:
    """Each field is checked, and one plain sentence says what is wrong, without repeating a token."""
    change, sentence = BAD[case]
    content = good()
    change(content)
    with pytest.raises(Problem) as caught:
        parse(json.dumps(content).encode(), allow_loopback=False)
    assert sentence in caught.value.message
    assert "canary" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100000, b" " * 300000, b'{"version":NaN}']
)
def test_what_is_no_document(raw: bytes) -> None:
    """Something cut short, too large, too deep or not JSON at all ends in a sentence."""
    with pytest.raises(Problem, match="export"):
        parse(raw, allow_loopback=False)


def test_a_good_document_survives() -> None:
    """What was exported is what is imported, optional fields left out included."""
    document = parse(json.dumps(good()).encode(), allow_loopback=False)
    assert document.content() == good()
    least = good()
    del least["tokens"]["id_token"], least["tokens"]["expires_in"]
    assert parse(json.dumps(least).encode(), allow_loopback=False).content() == least
    assert parse(document.text().encode("utf-8-sig"), allow_loopback=False) == document


def test_loopback_on_request() -> None:
    """A loopback token endpoint is taken where the setting for tests says so."""
    content = good() | {"token_endpoint": "http://127.0.0.1:1/oauth2/token"}
    assert parse(json.dumps(content).encode(), allow_loopback=True).token_endpoint.startswith("http://127")


@pytest.mark.parametrize("url", [*TRUSTED, *UNTRUSTED.values(), "http://localhost:1/x", "http://[::1]:1/x"])
@pytest.mark.parametrize("allow_loopback", [True, False])
def test_the_same_addresses_as_everywhere(url: str, allow_loopback: bool) -> None:
    """Tokens may go where origins.py says, and nowhere else."""
    try:
        trusted_url(url, allow_loopback=allow_loopback)
    except UntrustedOrigin:
        expected = False
    else:
        expected = True
    assert is_trusted(url, allow_loopback=allow_loopback) is expected


def test_the_same_client_as_everywhere(shared_sim: Sim) -> None:
    """The client id is read from the claims as credentials/ reads it."""
    tokens = shared_sim.login()
    expected = read_token(tokens["access_token"], id_token=tokens["id_token"]).client_id
    assert client_id(tokens) == expected
    assert (
        client_id({"id_token": tokens["id_token"]}) == read_token("x", id_token=tokens["id_token"]).client_id
    )
    assert client_id({"access_token": "no.jwt.at-all", "id_token": 7}) is None


def test_a_document_hides_its_secrets() -> None:
    """Neither its repr nor its code holds a token, and the code differs from login to login."""
    document = parse(json.dumps(good()).encode(), allow_loopback=False)
    assert "canary" not in repr(document)
    other = Document("c", document.token_endpoint, document.tokens | {"refresh_token": "another"})
    assert len(document.code) == 9
    assert document.code != other.code
