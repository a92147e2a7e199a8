"""Logins at a certain moment of their life, and what the simulator and a client say of them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx

from tests.harness import PATIENCE, Home, Json, Proxy, provider_store
from tests.sim.harness import CLIENT, Sim

MACHINE = Path(__file__).with_name("machine")
"""See machine/sitecustomize.py."""

ADOPTED = "Tokens written by hermes are now in use"
REFRESHED = "The access token was refreshed"


def write_due_login(home: Home, sim: Sim, *, left: float = 240, age: float = 0) -> Json:
    """A login of `age` seconds that the proxy refreshes at once, though the API takes its token for hours.

    `left` seconds by the state file, which a proxy wrote long ago; its times win over those in the token.
    """
    tokens = sim.login(age=age)
    now = time.time()
    times = {"issued_at": now - 86400, "expires_at": now + left}
    state = {
        "version": 1,
        "provider": "xai-oauth",
        "source": "hermes",
        "client_id": CLIENT,
        "tokens": {key: value for key, value in tokens.items() if key != "scope"} | times,
        "successors": {},
        "dead": {},
        "last_refresh": {},
        "sending": None,
    }
    home.state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.state.touch(mode=0o600)
    home.state.write_text(json.dumps(state))
    home.write_store(provider_store(tokens))
    return tokens


def queue_fault(sim: Sim, kind: str, times: int = 1) -> None:
    """What the token endpoint does to its next requests."""
    sim.http.post("/_sim/token-faults", json={"kind": kind, "times": times}).raise_for_status()


def expire_access(sim: Sim) -> None:
    """The API refuses every access token there is."""
    sim.http.post("/_sim/expire-access").raise_for_status()


def ask(proxy: Proxy) -> httpx.Response:
    return proxy.http.post("/v1/echo", content=b"the body")


def assert_served(proxy: Proxy) -> None:
    answer = ask(proxy)
    assert answer.status_code == 200, "\n".join([answer.text, *proxy.err.lines])


def wait_until_served(proxy: Proxy) -> None:
    """Ask until a request is answered, as a client does that is told to try again in a moment."""
    deadline = time.monotonic() + PATIENCE
    while (answer := ask(proxy)).status_code == 503:
        assert time.monotonic() < deadline, "\n".join([answer.text, *proxy.err.lines])
        time.sleep(0.05)
    assert answer.status_code == 200


def wait_until_well(proxy: Proxy) -> None:
    """Wait until /health has no problem to tell."""
    deadline = time.monotonic() + PATIENCE
    while (report := proxy.health())["status"] != "ok":
        assert time.monotonic() < deadline, [report, *proxy.err.lines]
        time.sleep(0.05)


def assert_refused(proxy: Proxy, code: str) -> str:
    """No token for a request, for this reason; the sentence that comes with it."""
    answer = ask(proxy)
    error: Json = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, code)
    return str(error["message"])


def assert_intact(home: Home, sim: Sim) -> None:
    """No link was sent twice, and what stands in the store is the living one."""
    counters = sim.counters()
    assert (counters["reuses"], counters["revocations"]) == (0, 0)
    (living,) = home.refresh_tokens()
    assert sim.refresh(living).status_code == 200
