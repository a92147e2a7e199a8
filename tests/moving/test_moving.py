"""`export --move`: one owner, whatever happens between the export and the end."""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import PATIENCE, pool_entry, provider_store, proxy_running
from tests.moving.side import Side, as_kept, books, code_in, link
from tests.sim.harness import CLIENT, Sim

NOT_REMOVED = "Nothing was removed here"


def test_one_owner(here: Side, there: Side, shared_sim: Sim) -> None:
    """After the code was given the login is on the other side only; logins beside it stay."""
    tokens, other = shared_sim.login(), shared_sim.login()
    store = provider_store(tokens)
    pool = store["credential_pool"]["xai-oauth"]
    pool += [pool_entry(tokens, source="manual:device_code"), pool_entry(other, source="manual:device_code")]
    here.home.write_store(store)
    known = {"successors": {"a" * 32: link(tokens["refresh_token"])}}
    here.write_books(tokens=as_kept(tokens), client_id=CLIENT, **known)
    with here.moving() as export:
        imported = there.run("import", given=export.document)
        assert imported.returncode == 0, imported.stderr
        assert export.answer(code_in(imported.stdout).lower()) == 0
        assert "the other side is its only owner" in export.err.text()
    assert there.home.refresh_tokens() == {tokens["refresh_token"]}
    assert here.home.refresh_tokens() == {other["refresh_token"]}
    assert here.read_books() == books(**known)
    left = json.dumps(here.files())
    assert not any(tokens[name] in left for name in ("access_token", "refresh_token", "id_token"))
    after = here.home.read_store()
    assert after["providers"]["nous"] == store["providers"]["nous"]
    assert after["unknown"] == store["unknown"]
    assert after["credential_pool"]["xai-oauth"][2] == pool[2]


def test_the_own_login(here: Side, there: Side, shared_sim: Sim) -> None:
    """The proxy's own login is moved to the other side's own state in the same way."""
    tokens = shared_sim.login()
    here.own.parent.mkdir(mode=0o700, parents=True)
    here.own.write_text(json.dumps(books(source="own", client_id=CLIENT, tokens=as_kept(tokens))))
    with here.moving("--output", str(here.home.path / "out.json")) as export:
        imported = there.run("import", "--own", str(here.home.path / "out.json"))
        assert export.answer(code_in(imported.stdout)) == 0
        assert "Delete the export now" in export.err.text()
    left = json.loads(here.own.read_text())
    assert (left["tokens"], left["client_id"]) == (None, CLIENT)
    assert json.loads(there.own.read_text())["tokens"]["refresh_token"] == tokens["refresh_token"]


@pytest.mark.parametrize("line", ["", "AAAA-AAAA", None])
def test_without_the_code(here: Side, shared_sim: Sim, line: str | None) -> None:
    """A wrong code, an empty one or the end of the input: nothing is removed, and it says what that means."""
    here.sign_in(shared_sim)
    before = here.files()
    with here.moving() as export:
        assert export.answer(line) == 1
        assert NOT_REMOVED in export.err.text()
    assert here.files() == before


def test_mistyped(here: Side, there: Side, shared_sim: Sim) -> None:
    """A wrong code is asked for again, while the lock stays held, and the right one still ends it."""
    here.sign_in(shared_sim)
    with here.moving() as export:
        code = code_in(there.run("import", given=export.document).stdout)
        for wrong in ("AAAA-AAAA\n", f"\n{'x' * 5000}\n"):
            told = len(export.err.lines)
            export.type(wrong)
            export.err.wait_for("That is not the code of this login", after=told)
            assert here.is_locked()
        assert export.answer(f" {code.replace('-', ' ')}") == 0
    assert here.home.refresh_tokens() == set()


def test_wrong_for_ever(here: Side, shared_sim: Sim) -> None:
    """Who gives wrong codes without an end does not hold the lock without an end."""
    here.sign_in(shared_sim)
    with here.moving() as export:
        export.type("y\n" * 30)
        assert export.process.wait(PATIENCE) == 1
        told = export.err.text()
        assert NOT_REMOVED in told
    assert told.count("Confirmation code shown") == told.count("That is not the code") == 20
    assert not here.is_locked()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_while_it_waits(here: Side, shared_sim: Sim, number: signal.Signals) -> None:
    """However it is ended, nothing is removed and the lock is free again."""
    here.sign_in(shared_sim)
    before = here.files()
    with here.moving() as export:
        assert here.is_locked()
        export.process.send_signal(number)
        export.process.wait(PATIENCE)
        if number == signal.SIGINT:
            assert export.process.returncode == 130
            assert NOT_REMOVED in export.err.text()
    assert here.files() == before
    assert not here.is_locked()


def test_a_link_that_was_replaced(here: Side, shared_sim: Sim) -> None:
    """Whoever ignores the lock and writes another link meanwhile keeps it: nothing is removed."""
    tokens = here.sign_in(shared_sim)
    with here.moving() as export:
        second = shared_sim.refresh(tokens["refresh_token"]).json()
        here.home.write_store(provider_store(second))
        before = here.files()
        code = code_in(Side.at(here.home.path / "b", shared_sim).run("import", given=export.document).stdout)
        before |= {name: text for name, text in here.files().items() if name.startswith("b/")}
        assert export.answer(code) == 1
        assert "Nothing was removed: the login" in export.err.text()
    assert here.files() == before


def test_nobody_spends_it_meanwhile(here: Side, own_sim: Sim) -> None:
    """While the code is waited for a proxy that wants to refresh the login waits; afterwards it cannot."""
    here.sim = own_sim
    tokens = here.sign_in(own_sim, access_lifetime=6)
    with ExitStack() as running:
        with here.moving() as export:
            proxy = running.enter_context(proxy_running(here.home, own_sim))
            # The last quarter of the token's life is when the proxy refreshes it.
            while proxy.health()["token_seconds_to_expiry"] > 0.5:
                assert own_sim.counters()["token_requests"] == 0
            there = Side.at(here.home.path / "there", own_sim)
            code = code_in(there.run("import", given=export.document).stdout)
            assert export.answer(code) == 0
        proxy.err.wait_for("holds no xAI login")
        deadline = time.monotonic() + PATIENCE
        while proxy.http.get("/v1/models").status_code == 200:
            assert time.monotonic() < deadline
        assert proxy.http.get("/v1/models").status_code == 503
        assert own_sim.counters()["token_requests"] == 0
        proxy.stop()
    assert tokens["refresh_token"] not in json.dumps(
        {k: v for k, v in here.files().items() if "there" not in k}
    )
    with proxy_running(there.home, own_sim) as other:
        assert other.http.get("/v1/models").status_code == 200
    assert (own_sim.counters()["refreshes"], own_sim.counters()["reuses"]) == (1, 0)


def test_to_the_same_store(here: Side, shared_sim: Sim) -> None:
    """An import into the very store that the login is moved out of finds it locked: nothing is lost."""
    tokens = here.sign_in(shared_sim)
    with here.moving() as export:
        assert here.is_locked()
        assert export.answer(None) == 1
    assert here.home.refresh_tokens() == {tokens["refresh_token"]}


def test_what_was_left_behind_goes_too(here: Side, there: Side, shared_sim: Sim) -> None:
    """A store with a spent link, whose successor was moved, holds neither afterwards."""
    first = here.sign_in(shared_sim)
    second = shared_sim.refresh(first["refresh_token"]).json()
    follows = {link(first["refresh_token"]): link(second["refresh_token"])}
    here.write_books(successors=follows, tokens=as_kept(second))
    with here.moving() as export:
        assert export.answer(code_in(there.run("import", given=export.document).stdout)) == 0
    assert there.home.refresh_tokens() == {second["refresh_token"]}
    assert here.home.refresh_tokens() == set()
    assert here.read_books()["tokens"] is None
    assert Path(here.home.auth).exists()


def test_there_and_back(here: Side, there: Side, shared_sim: Sim) -> None:
    """A login that was moved away and refreshed there can be moved back; the old export cannot."""
    tokens = here.sign_in(shared_sim)
    with here.moving() as export:
        old = export.document
        assert export.answer(code_in(there.run("import", given=old).stdout)) == 0
    second = shared_sim.refresh(tokens["refresh_token"]).json()
    there.home.write_store(provider_store(second))
    follows = {link(tokens["refresh_token"]): link(second["refresh_token"])}
    there.write_books(successors=follows, tokens=as_kept(second))
    assert "older than the login" in there.run("import", given=old).stderr
    with there.moving() as export:
        assert export.answer(code_in(here.run("import", given=export.document).stdout)) == 0
    assert (here.home.refresh_tokens(), there.home.refresh_tokens()) == ({second["refresh_token"]}, set())
