"""What the real Hermes leaves behind when a person signs in: the ground truth of the other tests' stores."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.harness import Json, pool_store, provider_store
from tests.hermes.rig import Rig
from tests.sim.harness import claims

VOLATILE = {"id", "label", "last_refresh"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def without(place: Json, *names: str) -> Json:
    return {key: value for key, value in place.items() if key not in names}


def check_entry(entry: Json, imitated: Json) -> None:
    """An entry of the pool holds what the imitation holds, and beyond that only empty notes of errors."""
    assert imitated.keys() <= entry.keys()
    assert {key: type(entry[key]) for key in imitated} == {key: type(imitated[key]) for key in imitated}
    assert {key: entry[key] for key in imitated if key not in VOLATILE} == without(imitated, *VOLATILE)
    further = without(entry, *imitated)
    assert further
    assert all(key.startswith("last_") and value is None for key, value in further.items())


def test_pool_login(rig: Rig) -> None:
    """`hermes auth add xai-oauth` writes a grant to the pool alone, privately, and leaves the lock file."""
    printed = rig.hermes("auth", "add", "xai-oauth", "--no-browser")
    assert "Added xai-oauth OAuth credential #1" in printed
    store = rig.home.read_store()
    (entry,) = store["credential_pool"]["xai-oauth"]
    imitated = pool_store(entry)
    assert store.keys() - {"updated_at"} == imitated.keys()
    assert without(store, "credential_pool", "updated_at") == without(imitated, "credential_pool")
    assert store["credential_pool"].keys() == {"xai-oauth"}
    check_entry(entry, imitated["credential_pool"]["xai-oauth"][0])
    folder = rig.home.auth.parent
    assert (mode(folder), mode(rig.home.auth)) == (0o700, 0o600)
    assert (folder / "auth.lock").is_file()
    assert rig.sim.counters()["logins"] == 1
    assert rig.sim.status_of(entry["access_token"]) == 200


def test_provider_login(rig: Rig) -> None:
    """Signing in through `hermes model` writes the provider's block alone, with a client id in its token."""
    rig.login("provider")
    store = rig.home.read_store()
    assert store.keys() == {"version", "providers", "active_provider", "updated_at"}
    assert (store["version"], store["active_provider"]) == (1, "xai-oauth")
    assert store["providers"].keys() == {"xai-oauth"}
    block = store["providers"]["xai-oauth"]
    imitated = provider_store(block["tokens"])["providers"]["xai-oauth"]
    assert block["tokens"].keys() == {"access_token", "refresh_token", "id_token", "expires_in", "token_type"}
    assert block["tokens"] == imitated["tokens"]
    assert block.keys() == without(imitated, "redirect_uri").keys()
    assert block["auth_mode"] == imitated["auth_mode"]
    assert imitated["discovery"].items() <= block["discovery"].items()
    assert claims(block["tokens"]["access_token"])["client_id"]
    assert rig.sim.status_of(block["tokens"]["access_token"]) == 200


def test_mirror(rig: Rig) -> None:
    """The next thing Hermes does after a provider login mirrors the block into the pool, token for token."""
    rig.login("provider")
    assert "xai-oauth (1 credentials)" in rig.hermes("auth", "list")
    store = rig.home.read_store()
    (entry,) = store["credential_pool"]["xai-oauth"]
    tokens = store["providers"]["xai-oauth"]["tokens"]
    check_entry(entry, provider_store(tokens)["credential_pool"]["xai-oauth"][0])
    assert rig.sim.counters()["token_requests"] == 1
