"""The control API itself."""

from __future__ import annotations

import threading
import time

import pytest

from tests.sim.harness import Sim, claims


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"gremlin": 1}, "gremlin"),
        ({"grace": "long"}, "grace"),
        ({"grace": -1}, "grace"),
        ({"omit_id_token": 1}, "omit_id_token"),
        ({"grace": True}, "grace"),
        ({"stale_style": "402"}, "stale_style"),
        ({"api_keys": [1]}, "api_keys"),
        ({"deferred_polls": 1.5}, "deferred_polls"),
        ({"reject_oauth": "gremlin"}, "reject_oauth"),
    ],
)
def test_config_refuses(sim: Sim, changes: dict[str, object], key: str) -> None:
    """An unknown key or a wrong value is 422 naming the key, and nothing of the request is applied."""
    reply = sim.http.patch("/_sim/config", json={"edge_lag": 7, **changes})
    assert reply.status_code == 422
    assert key in reply.json()["error"]
    assert sim.http.get("/_sim/state").json()["config"]["edge_lag"] == 0


def test_config_and_reset(sim: Sim) -> None:
    """A change shows in the state, and reset takes it back together with the counters."""
    sim.patch(access_lifetime=60, api_keys=["k"])
    assert sim.login()["expires_in"] == 60
    sim.http.post("/_sim/reset").raise_for_status()
    state = sim.http.get("/_sim/state").json()
    assert (state["config"]["access_lifetime"], state["config"]["api_keys"]) == (21600, ["xai-sim-key"])
    assert set(state["counters"].values()) == {0}


@pytest.mark.parametrize(("path", "body"), [("login", {"gremlin": 1}), ("login", {"access_lifetime": "x"})])
def test_unfit_requests(sim: Sim, path: str, body: dict[str, object]) -> None:
    """A field nobody knows or of the wrong type is 422."""
    assert sim.http.post(f"/_sim/{path}", json=body).status_code == 422


@pytest.mark.parametrize("body", [b"{", b"[]"])
def test_unreadable_requests(sim: Sim, body: bytes) -> None:
    """A body that is no JSON object is 422."""
    assert sim.http.patch("/_sim/config", content=body).status_code == 422


def test_wait_returns_when_reached(sim: Sim) -> None:
    """A long poll returns as soon as its counter gets there."""
    answers: list[bool] = []

    def wait() -> None:
        reply = sim.http.get("/_sim/wait", params={"counter": "logins", "n": 1, "timeout": 10})
        answers.append(reply.json()["reached"])

    waiter = threading.Thread(target=wait)
    waiter.start()
    sim.login()
    waiter.join(5)
    assert answers == [True]


def test_wait_gives_up(sim: Sim) -> None:
    """A long poll whose counter stays away says so; an upper bound can be waited for as well."""
    reply = sim.http.get("/_sim/wait-aborted", params={"n": 1, "timeout": 0.05}).json()
    assert reply == {"aborted_requests": 0, "reached": False}
    reply = sim.http.get("/_sim/wait", params={"counter": "open_requests", "max": 0}).json()
    assert reply["reached"] is True
    assert sim.http.get("/_sim/wait", params={"counter": "gremlins"}).status_code == 422


def test_login_of_a_while_ago(sim: Sim) -> None:
    """A login may have been made `age` seconds ago, its token living on for what is left."""
    token = sim.login(access_lifetime=100, age=90)["access_token"]
    assert claims(token)["exp"] - claims(token)["iat"] == 100
    assert claims(token)["exp"] - time.time() < 11
    assert sim.status_of(token) == 200
