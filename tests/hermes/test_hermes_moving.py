"""A login on its way between machines, as the real Hermes sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import Home, provider_store
from tests.hermes.rig import SHAPES, SHORT_LIFE, Rig, Shape, chat, wait_until_fresh
from tests.hermes.test_hermes_logins import check_entry, without
from tests.moving.side import Side, code_in


@pytest.fixture
def there(rig: Rig, tmp_path: Path) -> Rig:
    """Another machine that reaches the same simulated xAI."""
    (tmp_path / "there").mkdir()
    return Rig(rig.sim, Home(tmp_path / "there"), rig.hermes_bin, rig.tunnels, rig.egress)


@pytest.mark.parametrize("shape", SHAPES)
def test_moved_from_hermes_to_hermes(rig: Rig, there: Rig, shape: Shape) -> None:
    """A login that Hermes made works, and is refreshed, in Hermes elsewhere, and no longer here."""
    rig.login(shape)
    with Side(rig.home).moving() as export:
        imported = Side(there.home).run("import", given=export.document)
        assert export.answer(code_in(imported.stdout)) == 0
    with there.driver("provider") as driver:
        first = driver.resolve()
        second = driver.refresh()
        assert first != second
        assert rig.sim.status_of(second) == 200
    assert "xai-oauth (1 credentials)" in there.hermes("auth", "list")
    listed = rig.hermes("auth", "list")
    with rig.driver(shape) as driver, pytest.raises(AssertionError, match="refresh: "):
        driver.refresh()
    assert rig.home.refresh_tokens() == set(), listed
    assert rig.sim.counters()["refreshes"] == 1
    assert rig.sim.counters()["reuses"] == 0


def test_a_session_that_still_runs(rig: Rig, there: Rig) -> None:
    """A Hermes session with the moved login in memory looks at its emptied place, and does not spend it."""
    rig.login("pool")
    with rig.driver("pool") as session:
        session.do("load")
        with Side(rig.home).moving() as export:
            imported = Side(there.home).run("import", given=export.document)
            assert export.answer(code_in(imported.stdout)) == 0
        before = rig.sim.counters()["token_requests"]
        assert session.do("refresh loaded") == {"access_token": ""}
        assert rig.sim.counters()["token_requests"] == before
    with there.driver("provider") as driver:
        assert rig.sim.status_of(driver.refresh()) == 200


@pytest.mark.parametrize("shape", SHAPES)
def test_signing_in_after_a_move(rig: Rig, there: Rig, shape: Shape) -> None:
    """Where a login was moved away, signing in with Hermes works as ever."""
    rig.login(shape)
    with Side(rig.home).moving() as export:
        imported = Side(there.home).run("import", given=export.document)
        assert export.answer(code_in(imported.stdout)) == 0
    rig.login(shape)
    with rig.driver(shape) as driver:
        assert rig.sim.status_of(driver.refresh()) == 200
    assert len(rig.home.refresh_tokens()) == 1
    assert rig.home.refresh_tokens() != there.home.refresh_tokens()


def test_imported_over_a_login(rig: Rig, there: Rig) -> None:
    """Where Hermes had a login that `hermes auth remove` has hidden since, the imported one is used."""
    rig.login("provider")
    there.login("provider")
    there.hermes("auth", "list")
    there.hermes("auth", "remove", "xai-oauth", "1")
    document = Side(rig.home).run("export").stdout
    assert Side(there.home).run("import", given=document).returncode == 0
    there.hermes("auth", "list")
    here, store = rig.home.read_store(), there.home.read_store()
    block, imitated = store["providers"]["xai-oauth"], here["providers"]["xai-oauth"]
    assert block["tokens"] == imitated["tokens"]
    assert without(block, "tokens", "last_refresh", "discovery").items() <= imitated.items()
    assert block["discovery"].items() <= imitated["discovery"].items()
    (entry,) = store["credential_pool"]["xai-oauth"]
    assert entry["refresh_token"] == block["tokens"]["refresh_token"]
    check_entry(entry, provider_store(block["tokens"])["credential_pool"]["xai-oauth"][0])


def test_proxy_and_hermes_share_what_was_imported(rig: Rig, there: Rig) -> None:
    """The proxy serves an imported login and refreshes it; Hermes goes on with what that wrote."""
    rig.sim.patch(access_lifetime=SHORT_LIFE)
    rig.login("provider")
    document = Side(rig.home).run("export").stdout
    assert Side(there.home).run("import", given=document).returncode == 0
    rig.sim.patch(access_lifetime=21600)
    with there.proxy() as proxy:
        wait_until_fresh(proxy, 0)
        assert "hello" in chat(proxy)
        with there.driver("provider") as driver:
            assert rig.sim.status_of(driver.resolve()) == 200
            driver.refresh()
    assert rig.sim.counters()["reuses"] == 0
