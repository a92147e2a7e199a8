"""The token endpoint's faults, each queued and then gone."""

from __future__ import annotations

import httpx
import pytest

from .harness import Sim, client


def queue(sim: Sim, kind: str, times: int = 1) -> None:
    sim.http.post("/_sim/token-faults", json={"kind": kind, "times": times}).raise_for_status()


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("429", 429, "slow_down"),
        ("500", 500, "server_error"),
        ("502-html", 502, "<!DOCTYPE html>"),
        ("403-json", 403, "not entitled"),
        ("403-html", 403, "<!DOCTYPE html>"),
        ("empty", 200, ""),
        ("malformed", 200, '{"access_token": "eyJ'),
        ("nested-error", 400, '{"error":{'),
        ("nonstring-error", 400, '{"error":400'),
        ("temporarily_unavailable", 503, "temporarily_unavailable"),
        ("invalid_grant", 400, '{"error":"invalid_grant"}'),
        ("invalid_client", 401, '{"error":"invalid_client"}'),
    ],
)
def test_answered_without_processing(sim: Sim, kind: str, status: int, body: str) -> None:
    """The fault is what the client sees, nothing rotates, and the next request is served."""
    refresh_token = sim.login()["refresh_token"]
    queue(sim, kind)
    reply = sim.refresh(refresh_token)
    assert reply.status_code == status
    assert body in reply.text
    assert sim.counters()["refreshes"] == 0
    assert sim.refresh(refresh_token).status_code == 200


@pytest.mark.parametrize(("kind", "refreshes"), [("drop-before", 0), ("drop-after", 1)])
def test_dropped(sim: Sim, kind: str, refreshes: int) -> None:
    """A dropped request closes the connection unanswered, before or after the rotation."""
    refresh_token = sim.login()["refresh_token"]
    queue(sim, kind)
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        sim.refresh(refresh_token)
    assert sim.counters()["refreshes"] == refreshes
    assert sim.refresh(refresh_token).status_code == (200 if refreshes == 0 else 400)


def test_hang(sim: Sim) -> None:
    """A hanging request is answered by nothing and rotates nothing."""
    queue(sim, "hang")
    with (
        client(sim.url, timeout=0.2) as http,
        pytest.raises(httpx.ReadTimeout),
    ):
        http.post("/oauth2/token", data={"grant_type": "refresh_token"})
    assert sim.counters()["refreshes"] == 0


def test_slow_rotates_first(sim: Sim) -> None:
    """A slow answer comes after the rotation, so a client that gave up has lost the new token."""
    refresh_token = sim.login()["refresh_token"]
    queue(sim, "slow=0.3")
    with (
        client(sim.url, timeout=0.1) as http,
        pytest.raises(httpx.ReadTimeout),
    ):
        http.post(
            "/oauth2/token",
            data={
                "grant_type": "refresh_token",
                "client_id": "sim-client-0001",
                "refresh_token": refresh_token,
            },
        )
    assert sim.counters()["refreshes"] == 1


def test_times_and_clearing(sim: Sim) -> None:
    """A fault strikes as often as asked, and the queue can be emptied."""
    queue(sim, "500", times=2)
    codes = [sim.refresh(sim.login()["refresh_token"]).status_code for _ in range(3)]
    assert codes == [500, 500, 200]
    queue(sim, "500", times=9)
    assert sim.http.delete("/_sim/token-faults").json() == {"queued": []}
    assert sim.refresh(sim.login()["refresh_token"]).status_code == 200


def test_unknown_fault(sim: Sim) -> None:
    """A fault nobody knows is refused by name."""
    reply = sim.http.post("/_sim/token-faults", json={"kind": "gremlins"})
    assert reply.status_code == 422
    assert "gremlins" in reply.text
