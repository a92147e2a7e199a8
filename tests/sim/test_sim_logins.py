"""Logging in over HTTP: the device flow and the code flow with PKCE."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from .harness import CLIENT, Json, Sim, claims

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
VERIFIER = "a-verifier-of-at-least-forty-three-characters-long"
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
REDIRECT = "http://127.0.0.1:56121/callback"
AUTHORIZE = {
    "response_type": "code",
    "client_id": CLIENT,
    "redirect_uri": REDIRECT,
    "scope": "openid offline_access",
    "state": "state-1",
    "nonce": "nonce-1",
    "plan": "generic",
    "code_challenge": CHALLENGE,
    "code_challenge_method": "S256",
}


def start_device(sim: Sim) -> Json:
    reply: Json = sim.http.post("/oauth2/device/code", data={"client_id": CLIENT}).raise_for_status().json()
    return reply


def poll(sim: Sim, device: Json) -> httpx.Response:
    return sim.token(DEVICE_GRANT, device_code=device["device_code"])


def test_device_reply(sim: Sim) -> None:
    """The device reply has the fields of RFC 8628 with xAI's lifetime and interval."""
    reply = start_device(sim)
    assert (reply["expires_in"], reply["interval"]) == (1800, 5)
    assert reply["verification_uri_complete"].startswith(reply["verification_uri"] + "?user_code=")
    assert reply["user_code"] in reply["verification_uri_complete"]


def test_device_auto_approval(sim: Sim) -> None:
    """With automatic approval the first poll gets tokens, and a second one finds the code used."""
    device = start_device(sim)
    tokens = poll(sim, device).json()
    assert sim.status_of(tokens["access_token"]) == 200
    assert poll(sim, device).json()["error"] == "invalid_grant"
    assert sim.counters()["logins"] == 1


@pytest.mark.parametrize("way", ["control", "page"])
def test_device_manual_approval(sim: Sim, way: str) -> None:
    """A manual login is pending until approved through the control API or the page."""
    sim.patch(device_approval="manual", device_interval=0)
    device = start_device(sim)
    assert poll(sim, device).json()["error"] == "authorization_pending"
    if way == "control":
        sim.http.post("/_sim/device/approve", json={"user_code": device["user_code"]}).raise_for_status()
    else:
        sim.http.get(device["verification_uri_complete"]).raise_for_status()
    assert "access_token" in poll(sim, device).json()


def test_device_denied_expired_and_rushed(sim: Sim) -> None:
    """A denied, an expired and an impatient login get access_denied, expired_token and slow_down."""
    sim.patch(device_approval="manual", device_interval=0)
    denied = start_device(sim)
    sim.http.post("/_sim/device/deny", json={"user_code": denied["user_code"]}).raise_for_status()
    assert poll(sim, denied).json()["error"] == "access_denied"
    sim.patch(device_expires_in=0)
    assert poll(sim, start_device(sim)).json()["error"] == "expired_token"
    sim.patch(device_expires_in=1800, device_interval=5)
    rushed = start_device(sim)
    assert [poll(sim, rushed).json()["error"] for _ in range(2)] == ["authorization_pending", "slow_down"]


def test_unknown_user_code(sim: Sim) -> None:
    """The page and the control API say so when no login has the code."""
    assert sim.http.get("/oauth2/device", params={"user_code": "NOPE-NOPE"}).status_code == 404
    assert sim.http.post("/_sim/device/approve", json={"user_code": "NOPE-NOPE"}).status_code == 404


def authorize(sim: Sim, **changes: str) -> httpx.Response:
    return sim.http.get("/oauth2/authorize", params={k: v for k, v in {**AUTHORIZE, **changes}.items() if v})


def code_from(reply: httpx.Response) -> str:
    return parse_qs(urlsplit(reply.headers["location"]).query)["code"][0]


def redeem(sim: Sim, code: str, **changes: str) -> httpx.Response:
    fields = {"code": code, "redirect_uri": REDIRECT, "code_verifier": VERIFIER, **changes}
    return sim.token("authorization_code", **fields)


def test_pkce_login(sim: Sim) -> None:
    """The code flow redirects with code and state, and the code buys tokens that carry nonce and scope."""
    reply = authorize(sim)
    assert reply.status_code == 302
    assert reply.headers["location"].startswith(REDIRECT + "?")
    assert parse_qs(urlsplit(reply.headers["location"]).query)["state"] == ["state-1"]
    tokens = redeem(sim, code_from(reply)).json()
    assert claims(tokens["id_token"])["nonce"] == "nonce-1"
    assert tokens["scope"] == "openid offline_access"
    assert sim.refresh(tokens["refresh_token"]).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": ""},
        {"state": ""},
        {"nonce": ""},
        {"code_challenge": ""},
        {"code_challenge_method": "plain"},
        {"redirect_uri": "https://example.com/callback"},
        {"client_id": ""},
    ],
)
def test_authorize_refuses(sim: Sim, changes: dict[str, str]) -> None:
    """An authorize request that xAI would turn away is not redirected."""
    assert authorize(sim, **changes).status_code == 400


def test_wrong_verifier_and_wrong_redirect(sim: Sim) -> None:
    """A code is worthless without its verifier and its redirect URI."""
    code = code_from(authorize(sim))
    assert redeem(sim, code, code_verifier="x" * 43).json()["error"] == "invalid_grant"
    assert redeem(sim, code, redirect_uri=REDIRECT + "x").json()["error"] == "invalid_grant"
    assert redeem(sim, code).status_code == 200


def test_code_used_twice_revokes(sim: Sim) -> None:
    """The second use of a code revokes the grant of the first."""
    code = code_from(authorize(sim))
    tokens = redeem(sim, code).json()
    assert redeem(sim, code).json()["error"] == "invalid_grant"
    assert sim.status_of(tokens["access_token"]) == 401


def test_authorize_outcomes(sim: Sim) -> None:
    """The person may refuse, and a forged state can be played."""
    sim.patch(authorize_outcome="deny")
    assert "error=access_denied" in authorize(sim).headers["location"]
    sim.patch(authorize_outcome="bad-state")
    assert "state=state-1" not in authorize(sim).headers["location"]
