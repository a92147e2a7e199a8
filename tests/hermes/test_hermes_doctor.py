"""`doctor` with production settings: the real Hermes, TLS, an egress proxy."""

from __future__ import annotations

import json

import pytest

from tests.harness import run
from tests.hermes.rig import SHAPES, Rig, Shape


@pytest.mark.parametrize("shape", SHAPES)
def test_healthy(rig: Rig, shape: Shape) -> None:
    """After a sign-in with Hermes nothing is wrong; Hermes' version and the egress proxy are told."""
    rig.login(shape)
    ended = run(rig.proxy_environment(), "doctor", "--online", "--json")
    findings = {finding["name"]: finding for finding in json.loads(ended.stdout)["checks"]}
    assert ended.returncode == 0, findings
    assert "Hermes Agent v0.19.0" in findings["hermes"]["sentence"]
    place = {"provider": "the provider block", "pool": "in the credential pool"}[shape]
    assert place in findings["hermes-store"]["sentence"]
    way = rig.tunnels.url.removeprefix("http://")
    for name, host in (("auth-server", "auth.x.ai"), ("api", "api.x.ai")):
        told = f"{host} is reached by way of the egress proxy {way}: DNS, TLS and HTTP work."
        assert findings[name]["sentence"] == told
    assert findings["online"]["state"] == "ok"
    assert rig.sim.counters()["token_requests"] == 1
