"""`import`: the login is where Hermes or the proxy finds it, nothing else changes, nothing is lost."""

from __future__ import annotations

import json
import os

import pytest

from grok_oauth_proxy.credentials.hermes import HermesStore
from grok_oauth_proxy.credentials.state import StateFile
from grok_oauth_proxy.sim.jwt import mint
from tests.harness import UNPRIVILEGED, Json, pool_entry, pool_store, provider_store, proxy_running
from tests.moving.side import Side, as_kept, books, code_in, command, is_silent_about, link, mode
from tests.sim.harness import CLIENT, Sim


@pytest.fixture
def tokens(shared_sim: Sim) -> Json:
    login = shared_sim.login()
    del login["scope"]
    return login


@pytest.fixture
def document(tokens: Json) -> str:
    return document_of(tokens)


def document_of(tokens: Json, endpoint: str = "https://auth.x.ai/oauth2/token") -> str:
    head = {"version": 1, "provider": "xai-oauth", "client_id": CLIENT, "token_endpoint": endpoint}
    return json.dumps(head | {"tokens": tokens})


def test_into_an_empty_home(there: Side, tokens: Json, document: str) -> None:
    """Where nobody signed in before, a store of the shape Hermes writes is made, private as Hermes' own."""
    there.home.auth.parent.rmdir()
    before = os.umask(0)
    try:
        ended = there.run("import", given=document)
    finally:
        os.umask(before)
    assert ended.returncode == 0, ended.stderr
    store = there.home.read_store()
    assert (store["version"], store["active_provider"]) == (1, "xai-oauth")
    block = store["providers"]["xai-oauth"]
    assert block["tokens"] == tokens
    assert block.keys() == {"tokens", "last_refresh", "auth_mode", "discovery"}
    assert mode(there.home.auth) == mode(there.home.auth.with_name("auth.lock")) == 0o600
    assert mode(there.home.auth.parent) == 0o700
    assert "delete that now" in ended.stdout
    assert len(code_in(ended.stdout)) == 9
    assert "If `export --move` waits for a code, type this one there" in ended.stdout
    assert is_silent_about(ended, tokens)


def test_beside_what_is_there(there: Side, shared_sim: Sim, tokens: Json, document: str) -> None:
    """Everything of others stays, mirrors in the pool follow, and the old login can be put back."""
    old, other = shared_sim.login(), shared_sim.login()
    store = provider_store(old)
    store["providers"]["xai-oauth"]["last_auth_error"] = {"code": "old"}
    pool = store["credential_pool"]["xai-oauth"]
    pool[0]["last_status"] = "exhausted"
    pool.append(pool_entry(other, source="manual:device_code"))
    store["suppressed_sources"] = {"xai-oauth": ["device_code"], "nous": ["device_code"]}
    there.home.write_store(store)
    export = there.home.path / "xai-oauth.json"
    export.write_text(document)
    export.chmod(0o600)
    ended = there.run("import", str(export))
    assert ended.returncode == 0, ended.stderr
    assert f"rm {export}" in ended.stdout

    after = there.home.read_store()
    block, (mirror, manual) = after["providers"]["xai-oauth"], after["credential_pool"]["xai-oauth"]
    assert block["tokens"] == tokens
    assert "last_auth_error" not in block
    assert (mirror["access_token"], mirror["refresh_token"]) == (
        tokens["access_token"],
        tokens["refresh_token"],
    )
    assert mirror["last_status"] is None
    assert manual == pool[1]
    assert after["suppressed_sources"] == {"nous": ["device_code"]}
    for name in ("active_provider", "unknown", "version"):
        assert after[name] == store[name]
    assert after["providers"]["nous"] == store["providers"]["nous"]

    (kept,) = there.home.auth.parent.glob("auth.replaced-*.json")
    assert str(kept) in ended.stdout
    assert mode(kept) == 0o600
    assert there.run("import", str(kept)).returncode == 0
    assert (
        there.home.read_store()["providers"]["xai-oauth"]["tokens"]["refresh_token"] == old["refresh_token"]
    )


def test_the_proxy_prefers_another(there: Side, shared_sim: Sim, document: str) -> None:
    """Where the proxy has a login of its own, an import for Hermes says that it is not the one in use."""
    own = document_of({key: value for key, value in shared_sim.login().items() if key != "scope"})
    assert "which it prefers" not in there.run("import", "--own", given=own).stdout
    assert "which it prefers" in there.run("import", given=document).stdout


def test_twice(there: Side, tokens: Json, document: str) -> None:
    """The same import again changes nothing and keeps no copy."""
    codes = {code_in(there.run("import", given=document).stdout) for _ in range(2)}
    assert len(codes) == 1
    assert there.home.refresh_tokens() == {tokens["refresh_token"]}
    assert list(there.home.auth.parent.glob("*replaced*")) == []


def test_an_older_copy(there: Side) -> None:
    """When the login that is replaced may be a successor of the imported one, it says so."""
    for subject, issued, warned in (("a", 2000, True), ("a", 1000, False), ("b", 2000, False)):
        there.home.write_store(provider_store(minted(subject, issued)))
        ended = there.run("import", given=document_of(minted("a", 1500)))
        assert ended.returncode == 0, ended.stderr
        assert ("older copy" in ended.stdout) is warned


def minted(subject: str, issued: int) -> Json:
    claims = {"sub": subject, "iat": issued, "exp": issued + 900, "client_id": CLIENT}
    tokens = {"access_token": mint(claims), "refresh_token": f"{subject}-{issued}", "id_token": mint(claims)}
    return tokens | {"token_type": "Bearer"}


def test_a_place_in_the_pool(there: Side, tokens: Json, document: str) -> None:
    """A login that stands in Hermes' pool has one place afterwards: to Hermes each is an owner."""
    there.home.write_store(pool_store(tokens))
    assert there.run("import", given=document).returncode == 0
    store = there.home.read_store()
    assert store["providers"]["xai-oauth"]["tokens"]["refresh_token"] == tokens["refresh_token"]
    (entry,) = store["credential_pool"]["xai-oauth"]
    assert (entry["access_token"], entry["refresh_token"]) == ("", None)


def test_a_profile_of_the_same_login(there: Side, shared_sim: Sim) -> None:
    """A profile that uses the root store's login gets no copy, which Hermes would refresh alone."""
    there.sign_in(shared_sim)
    document = json.dumps(there.export())
    profile = there.home.auth.parent / "profiles" / "work"
    there.settings["HERMES_HOME"] = str(profile)
    ended = there.run("import", given=document)
    assert ended.returncode == 1
    assert "The root store" in ended.stderr
    assert not (profile / "auth.json").exists()


def test_own(there: Side, shared_sim: Sim, tokens: Json, document: str) -> None:
    """--own writes the proxy's own state in its format, leaves Hermes alone, and keeps a replaced login."""
    there.sign_in(shared_sim)
    hermes = there.home.auth.read_text()
    there.own.parent.mkdir(parents=True)
    old = shared_sim.login()
    there.own.write_text(
        json.dumps(books(source="own", client_id=CLIENT, tokens=as_kept(old), last_refresh={"x": "y"}))
    )
    ended = there.run("import", "--own", given=document)
    assert ended.returncode == 0, ended.stderr
    assert there.home.auth.read_text() == hermes
    state = StateFile(there.own).load()
    assert state is not None
    assert state.grant is not None
    assert (state.source, state.client_id, state.last_refresh) == ("own", CLIENT, {})
    assert state.grant.refresh_token.get_secret_value() == tokens["refresh_token"]
    assert state.grant.fingerprint == link(tokens["refresh_token"])
    assert state.grant.token.lifetime == 21600
    assert mode(there.own) == mode(there.own.with_name("login.lock")) == 0o600
    (kept,) = there.own.parent.glob("login.replaced-*.json")
    assert json.loads(kept.read_text())["tokens"]["refresh_token"] == old["refresh_token"]
    assert "with --own" in ended.stdout
    assert is_silent_about(ended, tokens)


def test_as_the_proxy_reads_it(there: Side, tokens: Json, document: str) -> None:
    """What stands in Hermes' store after an import is the grant that credentials/ reads there."""
    assert there.run("import", given=document).returncode == 0
    (grant,) = HermesStore((there.home.auth,)).read()
    assert grant.fingerprint == link(tokens["refresh_token"])
    assert grant.token.client_id == CLIENT


def test_stale_state(there: Side, shared_sim: Sim, tokens: Json, document: str) -> None:
    """What the proxy's state says of an earlier login goes, what it knows of spent links stays."""
    old = shared_sim.login()
    known = {"successors": {"a" * 32: "b" * 32}, "dead": {"c" * 32: "invalid_grant"}}
    stale = {"tokens": as_kept(old), "client_id": CLIENT, "last_refresh": {"last_refresh_status": "failure"}}
    there.write_books(**known, **stale, sending={"link": link(old["refresh_token"]), "at": 1.0})
    assert there.run("import", "--no-reset-proxy-state", given=document).returncode == 0
    assert there.read_books()["tokens"]["refresh_token"] == old["refresh_token"]
    assert there.run("import", given=document).returncode == 0
    assert there.read_books() == books(**known)
    there.write_books(**known, tokens=as_kept(tokens))
    assert there.run("import", given=document).returncode == 0
    assert there.read_books()["tokens"]["refresh_token"] == tokens["refresh_token"]


def test_damaged_state(there: Side, document: str) -> None:
    """A state file that nobody understands is kept under another name, as the proxy does."""
    there.write_books(version=99)
    ended = there.run("import", given=document)
    assert ended.returncode == 0, ended.stderr
    assert "auth_state.json.corrupt-1" in ended.stdout
    assert not there.home.state.exists()


def test_the_living_login_is_what_is_kept(there: Side, shared_sim: Sim, document: str) -> None:
    """Of a store left behind with a spent link, its successor is kept; of a dead login, nothing."""
    first = there.sign_in(shared_sim)
    second = shared_sim.refresh(first["refresh_token"]).json()
    follows = {link(first["refresh_token"]): link(second["refresh_token"])}
    there.write_books(successors=follows, tokens=as_kept(second))
    assert there.run("import", given=document).returncode == 0
    (kept,) = there.home.auth.parent.glob("auth.replaced-*.json")
    assert json.loads(kept.read_text())["tokens"]["refresh_token"] == second["refresh_token"]
    kept.unlink()
    there.home.write_store(provider_store(second))
    there.write_books(dead={link(second["refresh_token"]): "invalid_grant"})
    assert there.run("import", given=document).returncode == 0
    assert list(there.home.auth.parent.glob("auth.replaced-*.json")) == []


def test_a_successor_that_only_the_state_holds(there: Side, shared_sim: Sim, document: str) -> None:
    """The reset spares the only copy of a living login: that of a pool entry which was left behind."""
    first = shared_sim.login()
    second = shared_sim.refresh(first["refresh_token"]).json()
    store = provider_store(shared_sim.login())
    store["credential_pool"]["xai-oauth"].append(pool_entry(first, source="manual:device_code"))
    there.home.write_store(store)
    follows = {link(first["refresh_token"]): link(second["refresh_token"])}
    there.write_books(successors=follows, tokens=as_kept(second))
    assert there.run("import", given=document).returncode == 0
    assert there.read_books()["tokens"]["refresh_token"] == second["refresh_token"]


@pytest.mark.parametrize("own", [False, True])
def test_what_is_known_better_here(there: Side, tokens: Json, document: str, own: bool) -> None:
    """An export whose link was spent or refused here before is not believed, and nothing changes."""
    mine = link(tokens["refresh_token"])
    path = there.own if own else there.home.state
    path.parent.mkdir(parents=True)
    for changes, sentence in (
        ({"successors": {mine: "f" * 32}}, "is older than the login"),
        ({"dead": {mine: "invalid_grant"}}, "has refused this very login"),
    ):
        path.write_text(json.dumps(books(**changes)))
        before = there.files()
        for options in ((), ("--own",)):
            ended = there.run("import", *options, given=document)
            assert ended.returncode == 1
            assert sentence in ended.stderr
        assert there.files() == before


def test_no_two_owners_on_one_machine(there: Side, shared_sim: Sim) -> None:
    """A login that Hermes keeps is not made the proxy's own as well, nor the other way round."""
    there.sign_in(shared_sim)
    document = json.dumps(there.export())
    ended = there.run("import", "--own", given=document)
    assert ended.returncode == 1
    assert "two owners" in ended.stderr
    assert not there.own.exists()
    there.home.auth.unlink()
    assert there.run("import", "--own", given=document).returncode == 0
    ended = there.run("import", given=document)
    assert ended.returncode == 1
    assert "two owners" in ended.stderr
    assert not there.home.auth.exists()


def test_a_refusal_leaves_no_trace(there: Side, tokens: Json, document: str) -> None:
    """An import that is refused makes no folder and no lock file, where there were none."""
    there.home.auth.parent.rmdir()
    there.own.parent.mkdir(parents=True)
    there.own.write_text(json.dumps(books(source="own", client_id=CLIENT, tokens=as_kept(tokens))))
    before = sorted(there.home.path.rglob("*"))
    ended = there.run("import", given=document)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Nothing was changed." in ended.stderr
    assert sorted(there.home.path.rglob("*")) == before


def test_what_cannot_be_read(there: Side, document: str) -> None:
    """No file, a folder, garbage, a damaged store: one line, exit code 1, and nothing is changed."""
    garbage = there.home.path / "garbage"
    garbage.write_bytes(b"\x00\xff")
    for name in (str(there.home.path / "absent"), str(there.home.path), str(garbage)):
        ended = there.run("import", name)
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1 + (name == str(garbage)))
    assert not there.home.auth.exists()
    for damaged in ("[", '{"providers": []}'):
        there.home.auth.write_text(damaged)
        ended = there.run("import", given=document)
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert "is damaged" in ended.stderr
        assert there.home.auth.read_text() == damaged


def test_an_export_that_others_could_read(there: Side, document: str) -> None:
    """It is imported, with a warning."""
    export = there.home.path / "xai-oauth.json"
    export.write_text(document)
    export.chmod(0o644)
    ended = there.run("import", str(export))
    assert ended.returncode == 0
    assert "other users of this machine could read" in ended.stderr


def test_a_store_that_cannot_be_written(there: Side, shared_sim: Sim, document: str) -> None:
    """A read-only folder ends the import in one line, with the old login in place."""
    old = there.sign_in(shared_sim)
    there.home.auth.parent.chmod(0o500)
    try:
        ended = there.run_by([*UNPRIVILEGED, *command("import")], given=document)
    finally:
        there.home.auth.parent.chmod(0o700)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "Make the folder writable" in ended.stderr
    assert there.home.refresh_tokens() == {old["refresh_token"]}


def test_a_profile(there: Side, shared_sim: Sim, tokens: Json, document: str) -> None:
    """HERMES_HOME of a named profile gets a login of its own; the root store stays as it is."""
    there.sign_in(shared_sim)
    root = there.home.auth.read_text()
    profile = there.home.auth.parent / "profiles" / "work"
    there.settings["HERMES_HOME"] = str(profile)
    assert there.run("import", given=document).returncode == 0
    assert there.home.auth.read_text() == root
    store = json.loads((profile / "auth.json").read_text())
    assert store["providers"]["xai-oauth"]["tokens"]["refresh_token"] == tokens["refresh_token"]
    assert there.export()["tokens"]["refresh_token"] == tokens["refresh_token"]


def test_a_link_in_the_stores_place(there: Side, shared_sim: Sim, tokens: Json, document: str) -> None:
    """A symbolic link to a file beside it stays one; the file it names is written."""
    there.sign_in(shared_sim)
    real = there.home.auth.with_name("elsewhere.json")
    there.home.auth.rename(real)
    there.home.auth.symlink_to(real)
    assert there.run("import", given=document).returncode == 0
    assert there.home.auth.is_symlink()
    assert tokens["refresh_token"] in real.read_text()


@pytest.mark.parametrize("own", [False, True], ids=["hermes", "own"])
def test_a_link_that_leads_outside(there: Side, shared_sim: Sim, document: str, own: bool) -> None:
    """What the proxy would not read is not written, and its login is not handed over either."""
    there.sign_in(shared_sim)
    elsewhere = there.home.path / "elsewhere.json"
    store = there.own if own else there.home.auth
    elsewhere.write_bytes(there.home.auth.read_bytes())
    before = elsewhere.read_bytes()
    store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    store.unlink(missing_ok=True)
    store.symlink_to(elsewhere)
    options = ("--own",) if own else ()
    for arguments, given in ((("import", *options), document), (("export",), "")):
        ended = there.run(*arguments, given=given)
        assert ended.returncode != 0
        assert "outside its folder" in ended.stderr
        assert ended.stdout == ""
    assert elsewhere.read_bytes() == before


def test_bad_settings(there: Side, document: str) -> None:
    """A setting with a bad value is named, with exit code 2."""
    for name, value in (("GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM", "maybe"), ("HERMES_HOME", "~nobody-at-all/x")):
        there.settings = {name: value}
        ended = there.run("import", given=document)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert name in ended.stderr


def test_the_proxy_serves_it(there: Side, own_sim: Sim) -> None:
    """A running proxy without a living login takes an imported one over by itself, and refreshes it."""
    there.sim = own_sim
    there.sign_in(own_sim)
    with proxy_running(there.home, own_sim) as proxy:
        own_sim.http.post("/_sim/revoke").raise_for_status()
        assert proxy.http.get("/v1/models").status_code == 503
        moved = own_sim.login(access_lifetime=3)
        del moved["scope"]
        document = document_of(moved, f"{own_sim.url}/oauth2/token")
        assert there.run("import", given=document).returncode == 0
        proxy.err.wait_for("Tokens written by hermes are now in use")
        assert proxy.http.get("/v1/models").status_code == 200
        proxy.err.wait_for("The access token was refreshed")
        assert proxy.http.get("/v1/models").status_code == 200
        assert there.home.refresh_tokens() != {moved["refresh_token"]}
        assert own_sim.counters()["reuses"] == 0


def test_a_crash_leaves_one_or_the_other(there: Side, shared_sim: Sim, tokens: Json, document: str) -> None:
    """Killed when the store was written but the state was not, the next look uses the imported login."""
    old = there.sign_in(shared_sim)
    follows = {"e" * 32: link(old["refresh_token"])}
    there.write_books(tokens=as_kept(old), successors=follows, client_id=CLIENT)
    assert there.run("import", "--no-reset-proxy-state", given=document).returncode == 0
    with proxy_running(there.home, shared_sim) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
    assert there.home.refresh_tokens() == {tokens["refresh_token"]}
    assert there.read_books()["tokens"]["refresh_token"] == tokens["refresh_token"]
