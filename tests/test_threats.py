"""The threat model in SECURITY.md: every test it names exists; and those that stand nowhere else."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from tests.harness import Home, provider_store, proxy_running
from tests.sim.harness import Sim
from tests.survival.scene import ask

ROOT = Path(__file__).parent.parent
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())))


def test_every_adversary_is_shown() -> None:
    """No row of the table is without a test."""
    text = (ROOT / "SECURITY.md").read_text().partition("## Who may try what")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert len(rows) == 10
    assert all("::test_" in row.rsplit("|", 2)[1] for row in rows)


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_named_tests_exist(path: str) -> None:
    """A test that was renamed or removed is missed here."""
    tree = ast.parse((ROOT / path).read_text())
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {name for file, name in NAMED if file == path} <= there


def test_an_old_backup_is_worth_nothing(home: Home, own_sim: Sim) -> None:
    """A copy from before a refresh gives no tokens; trying it ends the login, which the owner is told."""
    home.write_store(provider_store(own_sim.login(access_lifetime=4)))
    with proxy_running(home, own_sim) as proxy:
        stolen = home.state.with_name("stolen.json")
        shutil.copy(home.auth, stolen)
        proxy.err.wait_for("The access token was refreshed")
        [link] = set(re.findall(r'"refresh_token": "([^"]+)"', stolen.read_text()))
        assert link not in home.refresh_tokens()
        assert own_sim.refresh(link).status_code == 400
        own_sim.http.post("/_sim/expire-access").raise_for_status()
        refused = ask(proxy)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "invalid_grant")
    assert not any(own_sim.refresh(token).is_success for token in home.refresh_tokens())
