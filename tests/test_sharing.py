"""One grant, two owners: what Hermes writes is used, and what the proxy rotates goes back."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness import (
    PATIENCE,
    UNPRIVILEGED,
    Home,
    Json,
    environment,
    pool_store,
    provider_store,
    proxy_running,
    run,
)
from tests.sim.harness import Sim

SHAPES = {"provider": provider_store, "pool": pool_store}


def without_tokens(store: Json) -> Json:
    """The store with everything a refresh may change taken out."""
    copy: Json = json.loads(json.dumps(store))
    block = copy.get("providers", {}).get("xai-oauth", {})
    for place in (block.get("tokens", {}), block, *copy.get("credential_pool", {}).get("xai-oauth", [])):
        for key in ("access_token", "refresh_token", "id_token", "expires_in", "token_type", "last_refresh"):
            place.pop(key, None)
    return copy


@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_is_written_back(home: Home, own_sim: Sim, shape: str) -> None:
    """A refresh replaces the tokens in every place that held them, and nothing else in the file."""
    home.write_store(SHAPES[shape](own_sim.login(access_lifetime=3)))
    before = home.read_store()
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for("The access token was refreshed")
        after = home.read_store()
        assert without_tokens(after) == without_tokens(before)
        assert len(home.refresh_tokens()) == 1
        assert own_sim.refresh(home.refresh_tokens().pop()).status_code == 200  # it is the living link
        assert home.auth.stat().st_mode & 0o777 == 0o600


def test_new_login_is_picked_up(home: Home, own_sim: Sim) -> None:
    """A login made while the daemon runs is used without a restart."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        own_sim.http.post("/_sim/revoke").raise_for_status()
        home.write_store(pool_store(own_sim.login()))
        proxy.err.wait_for("Tokens written by hermes are now in use")
        assert proxy.http.get("/v1/models").status_code == 200


def test_damaged_store_is_waited_out(home: Home, own_sim: Sim) -> None:
    """Half-written content changes nothing, is reported once, and what follows it is adopted."""
    home.write_store(provider_store(own_sim.login()))
    whole = json.dumps(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        home.auth.write_text(whole[: len(whole) // 2])
        proxy.err.wait_for("is damaged")
        assert proxy.http.get("/v1/models").status_code == 200
        home.auth.write_text(whole)
        proxy.err.wait_for("Tokens written by hermes are now in use")
        assert sum("is damaged" in line for line in proxy.err.lines) == 1


def test_old_copy_put_back_is_not_spent(home: Home, own_sim: Sim) -> None:
    """A backup of the store restored over a rotated one costs nothing: the living tokens are written back."""
    old = provider_store(own_sim.login(access_lifetime=3))
    home.write_store(old)
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for("The access token was refreshed")
        living = home.refresh_tokens()
        home.write_store(old)
        deadline = time.monotonic() + PATIENCE
        while home.refresh_tokens() != living:
            assert time.monotonic() < deadline, "the store still holds the old copy"
        assert proxy.http.get("/v1/models").status_code == 200
        assert own_sim.counters()["reuses"] == 0


def test_state_survives_without_the_write_back(home: Home, own_sim: Sim) -> None:
    """After a crash between the two writes the successor known to the state file goes into the store."""
    first = own_sim.login()
    home.write_store(provider_store(first))
    with proxy_running(home, own_sim):
        pass  # the state file now knows the first link
    state = json.loads(home.state.read_text())
    second = own_sim.refresh(first["refresh_token"]).json()
    assert state["successors"] == {}
    state["successors"] = {_fingerprint(first["refresh_token"]): _fingerprint(second["refresh_token"])}
    state["tokens"] |= {key: second[key] for key in ("access_token", "refresh_token")}
    home.state.write_text(json.dumps(state))
    with proxy_running(home, own_sim) as proxy:
        assert home.refresh_tokens() == {second["refresh_token"]}
        assert proxy.http.get("/v1/models").status_code == 200
        assert own_sim.counters()["reuses"] == 0


def _fingerprint(refresh_token: str) -> str:
    return hashlib.sha256(refresh_token.encode()).hexdigest()[:32]


def test_named_profile_falls_back_to_the_root_store(home: Home, own_sim: Sim) -> None:
    """HERMES_HOME of a profile without a login of its own serves, and rotates, the root store's."""
    home.write_store(provider_store(own_sim.login(access_lifetime=3)))
    profile = home.auth.parent / "profiles" / "work"
    profile.mkdir(parents=True)
    before = home.refresh_tokens()
    with proxy_running(home, own_sim, HERMES_HOME=profile) as proxy:
        proxy.err.wait_for("The access token was refreshed")
        assert home.refresh_tokens() != before
        assert not (profile / "auth.json").exists()


def test_read_only_store(home: Home, own_sim: Sim) -> None:
    """A store that cannot be written is reported on start, served from, and its login never refreshed."""
    home.write_store(provider_store(own_sim.login()))
    home.auth.chmod(0o400)
    home.auth.parent.chmod(0o500)
    try:
        with proxy_running(home, own_sim, by=UNPRIVILEGED) as proxy:
            proxy.err.wait_for("cannot be written, so its login is used but never refreshed here")
            assert proxy.http.get("/v1/models").status_code == 200
            before = len(proxy.err.lines)
            home.write_store(provider_store(own_sim.login(access_lifetime=1)))
            proxy.err.wait_for(r"\[store_read_only\]", after=before)
            assert own_sim.counters()["token_requests"] == 0
            assert proxy.health()["problem"]["code"] == "store_read_only"
    finally:
        home.auth.parent.chmod(0o700)


def test_two_proxies_share_one_grant(tmp_path: Path, own_sim: Sim) -> None:
    """Two proxies with state files of their own on one store rotate in turn without a reuse."""
    home = Home(tmp_path)
    home.write_store(provider_store(own_sim.login(access_lifetime=2)))
    own_sim.patch(access_lifetime=2)
    other = tmp_path / "other" / "state.json"
    with (
        proxy_running(home, own_sim) as one,
        proxy_running(home, own_sim, GROK_PROXY_AUTH_STATE=other) as two,
    ):
        own_sim.http.get("/_sim/wait?counter=refreshes&n=6&timeout=30", timeout=35)
        for proxy in (one, two):
            assert proxy.http.get("/v1/models").status_code == 200
        counters = own_sim.counters()
        assert counters["refreshes"] >= 6
        assert (counters["reuses"], counters["revocations"]) == (0, 0)


def test_login_without_refusal(home: Home, own_sim: Sim) -> None:
    """A start on a store with two grants serves from the provider block, as Hermes does."""
    tokens, other = own_sim.login(), own_sim.login()
    store = provider_store(tokens)
    store["credential_pool"]["xai-oauth"].append(pool_store(other)["credential_pool"]["xai-oauth"][0])
    home.write_store(store)
    with proxy_running(home, own_sim):
        assert json.loads(home.state.read_text())["tokens"]["access_token"] == tokens["access_token"]


def test_second_grant_takes_over(home: Home, own_sim: Sim) -> None:
    """When the preferred login is dead and the store holds another one, that one is used."""
    dead = own_sim.login()
    own_sim.http.post("/_sim/revoke").raise_for_status()
    store = provider_store(dead)
    store["credential_pool"]["xai-oauth"] += pool_store(own_sim.login())["credential_pool"]["xai-oauth"]
    home.write_store(store)
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.get("/v1/models").status_code == 200
        assert own_sim.counters()["token_requests"] == 1


def test_help_needs_nothing(home: Home) -> None:
    """`--help` and `--version` work without a login."""
    assert "serve" in run(environment(home), "--help").stdout
    assert run(environment(home), "--version").stdout.startswith("grok-oauth-proxy, version")


def test_pipe_in_place_of_the_store(home: Home, own_sim: Sim) -> None:
    """A pipe where the store was stops nothing: it is reported, and the file that follows it is adopted."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        home.auth.unlink()
        os.mkfifo(home.auth)
        proxy.err.wait_for("is not a regular file")
        home.write_store(provider_store(own_sim.login()))
        proxy.err.wait_for("Tokens written by hermes are now in use")
        assert proxy.http.get("/v1/models").status_code == 200


def test_full_disk_spends_nothing(home: Home, own_sim: Sim) -> None:
    """Where a renewed login could not be written, the refresh token is not sent; freed, it goes on."""
    home.write_store(provider_store(own_sim.login(access_lifetime=8)))
    # A limit of the process stands in for the disk: no file may grow beyond what the store has already.
    with proxy_running(home, own_sim, by=("prlimit", "--fsize=8192:unlimited")) as proxy:
        proxy.err.wait_for(r"\[store_not_writable\]")
        assert own_sim.counters()["token_requests"] == 0
        subprocess.run(["prlimit", f"--pid={proxy.process.pid}", "--fsize=unlimited"], check=True)
        proxy.err.wait_for("The access token was refreshed")
        assert own_sim.counters()["reuses"] == 0
