"""What the authorization server may answer to a sign-in."""

from __future__ import annotations

import json
import math

import httpx
import pytest

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.oauth import AuthorizationServer
from grok_oauth_proxy.credentials.sign_in import (
    BrowserLogin,
    DeviceCode,
    Pending,
    poll_device,
    request_device_code,
)
from grok_oauth_proxy.credentials.token import Grant
from grok_oauth_proxy.errors import SignInFailed
from tests.credentials.fakes import NOW, jwt

pytestmark = pytest.mark.anyio

ISSUER = "https://auth.x.ai"
CODE = {
    "device_code": "the-device-code",
    "user_code": "ABCD-EFGH",
    "verification_uri": f"{ISSUER}/device",
    "verification_uri_complete": f"{ISSUER}/device?user_code=ABCD-EFGH",
    "expires_in": 1800,
    "interval": 5,
}
TOKENS = {"access_token": jwt(sub="me", exp=NOW + 3600), "refresh_token": "r", "token_type": "Bearer"}


async def answering(status: int, body: object) -> AuthorizationServer:
    """A server that has been discovered and answers everything else like this."""
    names = ("token_endpoint", "device_authorization_endpoint", "authorization_endpoint")
    document = {name: f"{ISSUER}/{name}" for name in names}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=document)
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.Response(status, content=text)

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    server = AuthorizationServer(client, ISSUER, allow_loopback=False, connect_timeout=1, clock=Clock())
    await server.discover()
    return server


async def test_device_code() -> None:
    """A reply of the usual shape gives the page with the code in it, and the pace."""
    code = await request_device_code(await answering(200, CODE), "client")
    assert (code.page, code.user_code) == (CODE["verification_uri_complete"], "ABCD-EFGH")
    assert (code.expires_in, code.interval) == (1800, 5)
    assert "the-device-code" not in repr(code)


@pytest.mark.parametrize(
    "change",
    [
        {"user_code": "\x1b]0;owned\x07"},
        {"user_code": "A" * 4096},
        {"user_code": "\u202eHGFE"},
        {"verification_uri_complete": "javascript:alert(1)"},
        {"verification_uri_complete": "http://evil.example/device"},
        {"verification_uri_complete": f"{ISSUER}/\x1b[2J"},
        {"verification_uri_complete": None, "verification_uri": None},
        {"device_code": None},
        {"device_code": ["x"]},
        {"device_code": "with blank"},
    ],
    ids=lambda change: "-".join(change),
)
async def test_nothing_to_show(change: dict[str, object]) -> None:
    """What is not fit to be shown to a person, or to be sent back, ends the sign-in with one line."""
    with pytest.raises(SignInFailed, match="malformed_reply"):
        await request_device_code(await answering(200, {**CODE, **change}), "client")


@pytest.mark.parametrize("value", [-1, 0, 10**400, 1e300, "5", None, [], math.inf])
async def test_odd_times(value: object) -> None:
    """Times that make no sense are replaced by sensible ones."""
    body = json.dumps({**CODE, "expires_in": value, "interval": value}).encode()
    code = await request_device_code(await answering(200, body), "client")
    assert 1 <= code.interval <= 3600
    assert 1 <= code.expires_in <= 3600


async def polled(status: int, body: object) -> Grant | Pending:
    server = await answering(status, body)
    code: DeviceCode = await request_device_code(await answering(200, CODE), "client")
    return await poll_device(server, "client", code, 5.0, now=NOW)


@pytest.mark.parametrize(
    ("status", "body", "interval"),
    [
        (400, {"error": "authorization_pending"}, 5.0),
        (400, {"error": "slow_down"}, 10.0),
        (429, {"error": "slow_down"}, 10.0),
        (500, {"error": "server_error"}, 5.0),
        (502, b"<html>", 5.0),
        (403, b"<html>", 5.0),
        (200, b"<html>a portal", 5.0),
        (200, {}, 5.0),
        (400, {"error": {"code": "access_denied"}}, 5.0),
    ],
    ids=str,
)
async def test_asked_again(status: int, body: object, interval: float) -> None:
    """Only a verdict ends the wait; where the server asks to slow down, the pace is five seconds slower."""
    assert await polled(status, body) == Pending(interval)


@pytest.mark.parametrize(
    "error", ["access_denied", "authorization_denied", "expired_token", "invalid_client"]
)
async def test_verdicts(error: str) -> None:
    """A verdict ends the wait, in words that say what to do."""
    with pytest.raises(SignInFailed) as caught:
        await polled(400, {"error": error})
    assert caught.value.code == error
    assert "(" not in caught.value.message


async def test_confirmed() -> None:
    """A confirmed code gives the login."""
    grant = await polled(200, TOKENS)
    assert isinstance(grant, Grant)
    assert grant.refresh_token.get_secret_value() == "r"


@pytest.mark.parametrize("nonce", ["another", None, 5, "\ud800"])
async def test_nonce_of_another_sign_in(nonce: object) -> None:
    """A login whose id token has another nonce, or none, is not used."""
    question = BrowserLogin("client", "http://127.0.0.1:56121/callback")
    server = await answering(200, {**TOKENS, "id_token": jwt(nonce=nonce)})
    with pytest.raises(SignInFailed, match="nonce"):
        await question.redeem(server, "code", now=NOW)


async def test_nonce_of_this_one() -> None:
    """The nonce that was asked with is the one that counts."""
    question = BrowserLogin("client", "http://127.0.0.1:56121/callback")
    server = await answering(200, {**TOKENS, "id_token": jwt(nonce=question.nonce.get_secret_value())})
    assert (await question.redeem(server, "code", now=NOW)).refresh_token.get_secret_value() == "r"
