"""The proxy with its production settings, on a store that the real Hermes wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import run
from tests.hermes.rig import SHAPES, Rig, Shape, chat


@pytest.mark.parametrize("shape", SHAPES)
def test_default_settings(rig: Rig, shape: Shape) -> None:
    """With Hermes on PATH and no setting but the port the proxy serves either login, over TLS to api.x.ai."""
    rig.login(shape)
    rig.tunnels.opened.clear()
    with rig.proxy() as proxy:
        models = proxy.http.get("/v1/models")
        assert models.status_code == 200, models.text
        assert "grok-4" in [model["id"] for model in models.json()["data"]]
        assert "hello" in chat(proxy)
        assert proxy.stop() == 0
    # A token that lives for hours needs nothing from the authorization server.
    assert rig.tunnels.opened == {"api.x.ai:443"}
    assert rig.tunnels.refused == set()
    assert rig.sim.counters()["token_requests"] == 1


def test_refresh_with_default_settings(rig: Rig) -> None:
    """A refresh finds auth.x.ai through the same egress proxy and certificates as the API."""
    rig.login("pool")
    spent = rig.home.refresh_tokens()
    with rig.proxy() as proxy:
        assert "hello" in chat(proxy)
        rig.sim.http.post("/_sim/expire-access").raise_for_status()
        assert "hello" in chat(proxy)
    assert not rig.home.refresh_tokens() & spent
    assert rig.sim.counters()["refreshes"] == 1
    assert rig.tunnels.opened == rig.tunnels.routes


def test_no_hermes_on_path(rig: Rig, tmp_path: Path) -> None:
    """By default the proxy does not start without the Hermes CLI: one line, exit code 3."""
    rig.login("pool")
    empty = tmp_path / "empty"
    empty.mkdir()
    ended = run(rig.proxy_environment(PATH=empty))
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert "the Hermes CLI (`hermes`) is not on PATH" in line
