"""The token endpoint over HTTP: rotation, reuse, revocation, and what a reply may leave out."""

from __future__ import annotations

import pytest

from .harness import CLIENT, Sim, claims


def test_discovery_names_this_server(sim: Sim) -> None:
    """Every endpoint in the discovery document starts with the issuer, which is the bound URL."""
    document = sim.http.get("/.well-known/openid-configuration").json()
    endpoints = [value for key, value in document.items() if key.endswith(("_endpoint", "_uri"))]
    assert document["issuer"] == sim.url
    assert len(endpoints) == 5
    assert all(endpoint.startswith(f"{sim.url}/oauth2/") for endpoint in endpoints)
    assert document["code_challenge_methods_supported"] == ["S256"]
    assert sim.http.get(document["jwks_uri"]).json()["keys"][0]["alg"] == "ES256"


def test_login_reply_and_claims(sim: Sim) -> None:
    """A token reply has every field, and its access token is a JWT with the claims xAI puts there."""
    reply = sim.login(client_id="some-client", access_lifetime=900)
    assert reply["token_type"] == "Bearer"
    assert reply["expires_in"] == 900
    assert {"access_token", "refresh_token", "id_token", "scope"} <= reply.keys()
    found = claims(reply["access_token"])
    expected = "iss sub aud client_id scope exp iat jti principal_type principal_id team_id tier"
    assert found.keys() == set(expected.split())
    assert (found["iss"], found["aud"], found["client_id"]) == (sim.url, "some-client", "some-client")
    assert found["exp"] - found["iat"] == 900


def test_rotation(sim: Sim) -> None:
    """A refresh gives two new tokens, and the older access token goes on working."""
    first = sim.login()
    second = sim.refresh(first["refresh_token"]).raise_for_status().json()
    assert second["refresh_token"] != first["refresh_token"]
    assert second["access_token"] != first["access_token"]
    assert sim.status_of(first["access_token"]) == sim.status_of(second["access_token"]) == 200
    assert sim.counters()["refreshes"] == 1


def test_reuse_revokes_everything(sim: Sim) -> None:
    """Replaying a rotated token gets invalid_grant and takes the living tokens with it."""
    first = sim.login()
    second = sim.refresh(first["refresh_token"]).json()
    replayed = sim.refresh(first["refresh_token"])
    assert replayed.status_code == 400
    assert replayed.json() == {
        "error": "invalid_grant",
        "error_description": "Refresh token has been revoked",
    }
    assert sim.refresh(second["refresh_token"]).json()["error"] == "invalid_grant"
    assert sim.status_of(second["access_token"]) == 401
    counters = sim.counters()
    assert (counters["reuses"], counters["revocations"], counters["token_requests"]) == (1, 1, 3)


def test_grace_is_switchable(sim: Sim) -> None:
    """With grace configured a replay gets the same successor pair."""
    sim.patch(grace=60)
    first = sim.login()["refresh_token"]
    once, again = sim.refresh(first).json(), sim.refresh(first).json()
    assert once == again


def test_wrong_client(sim: Sim) -> None:
    """Another client's id gets invalid_client."""
    reply = sim.refresh(sim.login()["refresh_token"], client_id="stranger")
    assert (reply.status_code, reply.json()["error"]) == (400, "invalid_client")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"client_id": CLIENT}, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, "invalid_request"),
        ({"grant_type": "refresh_token", "client_id": CLIENT}, "invalid_request"),
        ({"grant_type": "refresh_token", "client_id": CLIENT, "refresh_token": "x"}, "invalid_grant"),
        ({"grant_type": "password", "client_id": CLIENT}, "unsupported_grant_type"),
    ],
)
def test_malformed_token_requests(sim: Sim, fields: dict[str, str], error: str) -> None:
    """Missing parameters, unknown tokens and unknown grant types get their RFC 6749 codes."""
    reply = sim.http.post("/oauth2/token", data=fields)
    assert (reply.status_code, reply.json()["error"]) == (400, error)


def test_json_body_is_refused(sim: Sim) -> None:
    """The token endpoint reads forms, not JSON."""
    assert sim.http.post("/oauth2/token", json={"grant_type": "refresh_token"}).status_code == 400


def test_team_principal(sim: Sim) -> None:
    """A team's refresh needs principal_type and principal_id, and being refused does not burn the token."""
    reply = sim.login(principal_type="Team", principal_id="team-7")
    refresh_token = reply["refresh_token"]
    assert claims(reply["access_token"])["principal_id"] == "team-7"
    assert sim.refresh(refresh_token).json()["error"] == "invalid_request"
    good = sim.refresh(refresh_token, principal_type="Team", principal_id="team-7")
    assert good.status_code == 200


@pytest.mark.parametrize("field", ["expires_in", "refresh_token", "id_token"])
def test_omissions(sim: Sim, field: str) -> None:
    """A reply leaves out what the config says, and a refresh token left out means the old one stays good."""
    refresh_token = sim.login()["refresh_token"]
    sim.patch(**{f"omit_{field}": True})
    reply = sim.refresh(refresh_token).json()
    assert field not in reply
    assert "access_token" in reply
    assert sim.refresh(reply.get("refresh_token", refresh_token)).status_code == 200


def test_revoke_endpoint(sim: Sim) -> None:
    """Revoking a refresh token ends its grant; an unknown token is answered 200 all the same."""
    pair = sim.login()
    for token in (pair["refresh_token"], "never-issued"):
        assert sim.http.post("/oauth2/revoke", data={"token": token, "client_id": CLIENT}).status_code == 200
    assert sim.status_of(pair["access_token"]) == 401
    assert sim.refresh(pair["refresh_token"]).json()["error"] == "invalid_grant"


def test_retired_endpoint_is_html(sim: Sim) -> None:
    """The old /oauth/token answers 403 with a Cloudflare page."""
    reply = sim.http.post("/oauth/token", data={"grant_type": "refresh_token"})
    assert reply.status_code == 403
    assert reply.headers["content-type"].startswith("text/html")
    assert "Cloudflare" in reply.text
