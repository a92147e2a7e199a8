"""Hermes' auth.json, read whatever its shape and written so that nothing else in it changes."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from grok_oauth_proxy.credentials.hermes import HermesStore
from grok_oauth_proxy.errors import StoreProblem
from tests.credentials.fakes import CLIENT, LIFETIME, NOW, Json, block, entry, jwt, link, name_of, store
from tests.credentials.users import as_nobody, as_root

A, B, C = link("refresh-a"), link("refresh-b"), link("refresh-c")


def at(folder: Path, content: object) -> HermesStore:
    path = folder / "auth.json"
    path.write_text(json.dumps(content))
    return HermesStore((path,))


def names(hermes: HermesStore) -> list[str]:
    return [name_of(grant) for grant in hermes.read()]


def content(hermes: HermesStore, number: int = 0) -> Any:
    return json.loads(hermes.paths[number].read_text())


SHAPES = {
    "provider-with-mirror": (store(block(A), entry(A, source="device_code")), ["refresh-a"]),
    "provider-alone": (store(block(A)), ["refresh-a"]),
    "pool-alone": (store(None, entry(A)), ["refresh-a"]),
    "provider-before-pool": (store(block(A), entry(B), entry(C)), ["refresh-a", "refresh-b", "refresh-c"]),
    "pool-in-its-order": (store(None, entry(C), entry(A), entry(B)), ["refresh-c", "refresh-a", "refresh-b"]),
    "stale-mirror": (store(block(B), entry(A, source="device_code")), ["refresh-b", "refresh-a"]),
    "quarantined-block": (store(block(None), entry(B)), ["refresh-b"]),
    "same-link-twice": (store(None, entry(A), entry(A)), ["refresh-a"]),
}


@pytest.mark.parametrize(("content", "expected"), SHAPES.values(), ids=SHAPES.keys())
def test_read(tmp_path: Path, content: Json, expected: list[str]) -> None:
    """Both places are read, the provider's block first, and each link once."""
    assert names(at(tmp_path, content)) == expected


def test_what_is_read(tmp_path: Path) -> None:
    """A grant carries its times, its client and its id token."""
    tokens = block(A)
    tokens["tokens"]["id_token"] = jwt(aud="of-the-id-token")
    tokens["tokens"]["token_type"] = "DPoP"
    (grant,) = at(tmp_path, store(tokens)).read()
    assert grant.token == A.token
    assert (grant.token.issued_at, grant.token.expires_at) == (NOW, NOW + LIFETIME)
    assert grant.token.client_id == CLIENT
    assert grant.id_token is not None
    assert grant.id_token.get_secret_value() == jwt(aud="of-the-id-token")
    assert grant.token_type == "DPoP"


def test_blanks_around_tokens(tmp_path: Path) -> None:
    """Blanks that came along with a pasted token are no part of it, when it is written back either."""
    padded = entry(A)
    padded["refresh_token"] = "  refresh-a\n"
    hermes = at(tmp_path, store(None, padded))
    assert names(hermes) == ["refresh-a"]
    assert hermes.write_back(A, B) == 1
    assert names(hermes) == ["refresh-b"]


def tokens_with(**fields: object) -> Json:
    changed = block(A)
    changed["tokens"] |= fields
    return store(changed)


HOSTILE: dict[str, object] = {
    "empty": {},
    "providers-list": {"providers": [block(A)]},
    "provider-list": {"providers": {"xai-oauth": [block(A)]}},
    "provider-null": {"providers": {"xai-oauth": None}},
    "tokens-list": {"providers": {"xai-oauth": {"tokens": ["a", "b"]}}},
    "pool-list": {"credential_pool": [entry(A)]},
    "pool-object": {"credential_pool": {"xai-oauth": {"0": entry(A)}}},
    "pool-of-anything": {"credential_pool": {"xai-oauth": [None, 1, "x", [entry(A)], True]}},
    "number": tokens_with(access_token=7),
    "list": tokens_with(refresh_token=["refresh-a"]),
    "boolean": tokens_with(refresh_token=True),
    "null": tokens_with(refresh_token=None),
    "blank": tokens_with(refresh_token="  "),
    "line-break": tokens_with(access_token="a\r\nhost: evil.com"),
    "null-character": tokens_with(access_token="a\x00b"),
    "delete-character": tokens_with(access_token="a\x7fb"),
    "inner-blank": tokens_with(access_token="a b"),
    "not-ascii": tokens_with(access_token="é"),
    "surrogate": tokens_with(refresh_token="\ud800"),
    "no-refresh-token": tokens_with(refresh_token=""),
    "api-key-in-the-pool": {"credential_pool": {"xai-oauth": [{"api_key": "k", "access_token": "k"}]}},
    "another-provider": {"providers": {"nous": block(A)}},
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_shapes(tmp_path: Path, content: object) -> None:
    """What is not a pair of usable tokens counts as no login, with a next step, and is never written to."""
    hermes = at(tmp_path, content)
    before = hermes.paths[0].read_bytes()
    with pytest.raises(StoreProblem) as caught:
        hermes.read()
    assert caught.value.code == "no_tokens"
    assert "hermes auth add" in caught.value.message
    assert hermes.write_back(C, B) == 0
    assert hermes.paths[0].read_bytes() == before


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_neighbours(tmp_path: Path, content: Json) -> None:
    """A usable grant is found beside a damaged place wherever the damage leaves room for one."""
    if not isinstance(content.get("credential_pool", {}), dict):
        content = {"credential_pool": {}}
    merged = deepcopy(content)
    merged.setdefault("credential_pool", {})["xai-oauth"] = [None, 7, entry(C)]
    assert names(at(tmp_path, merged)) == ["refresh-c"]


@pytest.mark.parametrize(
    ("text", "code"),
    [(None, "missing"), (b"{", "corrupt"), (b"[]", "corrupt"), (b"{}", "no_tokens")],
    ids=["missing", "torn", "list", "no-login"],
)
def test_problems(tmp_path: Path, text: bytes | None, code: str) -> None:
    """Each way of having no login has a code of its own."""
    path = tmp_path / "auth.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(StoreProblem) as caught:
        HermesStore((path,)).read()
    assert caught.value.code == code
    assert str(path) in caught.value.message


def test_write_back_everywhere(tmp_path: Path) -> None:
    """The successor goes to every place of the spent link, and to the mirror even when that was stale."""
    before = store(
        block(A),
        entry(A, source="device_code", label="mirror"),
        entry(C, source="device_code", label="stale mirror"),
        entry(A, label="copy"),
        entry(B, label="another grant"),
    )
    hermes = at(tmp_path, before)
    new = link("refresh-new")
    assert hermes.write_back(A, new) == 4
    after = content(hermes)
    assert after["providers"]["xai-oauth"]["tokens"]["refresh_token"] == "refresh-new"
    pool = after["credential_pool"]["xai-oauth"]
    assert [item["refresh_token"] for item in pool] == ["refresh-new"] * 3 + ["refresh-b"]
    access = new.token.bearer.get_secret_value()
    assert after["providers"]["xai-oauth"]["tokens"]["access_token"] == access
    assert [item["access_token"] for item in pool[:3]] == [access] * 3


def test_manual_entries_are_grants_of_their_own(tmp_path: Path) -> None:
    """Without the provider's block being renewed, a device_code entry with another link is left alone."""
    hermes = at(tmp_path, store(block(B), entry(B, source="device_code"), entry(A)))
    assert hermes.write_back(A, C) == 1
    assert names(hermes) == ["refresh-b", "refresh-c"]


def without_tokens(value: Any) -> Any:
    """A store less what a write-back may change in xAI's places."""
    changed = {"access_token", "refresh_token", "last_refresh", "expires_in", "token_type"}
    copy = deepcopy(value)
    for place in (copy["providers"]["xai-oauth"], copy["providers"]["xai-oauth"]["tokens"]):
        for name in changed:
            place.pop(name, None)
    for item in copy["credential_pool"]["xai-oauth"]:
        for name in changed:
            item.pop(name, None)
    return copy


def test_nothing_else_changes(tmp_path: Path) -> None:
    """Every other key, of xAI's and of other programs', is as it was, in the order it had."""
    before = store(block(A), entry(A, source="device_code"), entry(B))
    hermes = at(tmp_path, before)
    hermes.write_back(A, C)
    after = content(hermes)
    assert without_tokens(after) == without_tokens(before)
    assert json.dumps(without_tokens(after)) == json.dumps(without_tokens(before))
    assert after["credential_pool"]["xai-oauth"][1] == before["credential_pool"]["xai-oauth"][1]
    assert after["providers"]["xai-oauth"]["last_refresh"] != before["providers"]["xai-oauth"]["last_refresh"]


def test_nothing_to_write(tmp_path: Path) -> None:
    """A store that does not hold the spent link is not touched."""
    hermes = at(tmp_path, store(block(A), entry(B)))
    before = hermes.fingerprint()
    assert hermes.write_back(C, link("refresh-new")) == 0
    assert hermes.fingerprint() == before


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, [1]])
def test_unknown_version(tmp_path: Path, version: object) -> None:
    """A store in an unknown version is read, but its link not to be spent; one that is spent is replaced."""
    hermes = at(tmp_path, store(block(A), entry(A)) | {"version": version})
    assert names(hermes) == ["refresh-a"]
    with pytest.raises(StoreProblem, match="has a format") as caught:
        hermes.rehearse()
    assert caught.value.code == "unknown_version"
    assert hermes.write_back(A, B) == 2
    assert names(hermes) == ["refresh-b"]
    assert content(hermes)["version"] == version


@pytest.mark.parametrize("version", [{}, {"version": 1}], ids=["none", "1"])
def test_known_version(tmp_path: Path, version: Json) -> None:
    """A store of the version Hermes writes, or from before it wrote one, takes what is refreshed."""
    content = {key: value for key, value in store(block(A)).items() if key != "version"}
    hermes = at(tmp_path, content | version)
    hermes.rehearse()
    assert hermes.write_back(A, B) == 1
    assert names(hermes) == ["refresh-b"]


def test_rehearsal_where_nothing_is_kept(tmp_path: Path) -> None:
    """A profile's store that cannot be read holds no link, so that it does not keep the root's from use."""
    root = at(tmp_path, store(block(A))).paths[0]
    (tmp_path / "profile").mkdir()
    linked = tmp_path / "profile" / "auth.json"
    linked.symlink_to(root)
    for profile in (linked, tmp_path / "absent.json"):
        hermes = HermesStore((profile, root))
        hermes.rehearse()
        assert hermes.write_back(A, A) == 1
    assert linked.is_symlink()
    assert not (tmp_path / "absent.json").exists()


def test_quarantined_block_is_not_revived(tmp_path: Path) -> None:
    """A block whose tokens Hermes took away stays empty when a pool entry is renewed."""
    hermes = at(tmp_path, store(block(None), entry(A, source="device_code")))
    assert hermes.write_back(A, B) == 1
    assert "refresh_token" not in content(hermes)["providers"]["xai-oauth"]["tokens"]


def profile(tmp_path: Path, own: Json | None, root: Json | None) -> HermesStore:
    paths = (tmp_path / "profiles" / "work" / "auth.json", tmp_path / "auth.json")
    for path, kept in zip(paths, (own, root), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kept is not None:
            path.write_text(json.dumps(kept))
    return HermesStore(paths)


@pytest.mark.parametrize(
    ("own", "root", "expected"),
    [
        (store(block(A)), store(block(B)), ["refresh-a"]),
        (store(None), store(block(B)), ["refresh-b"]),
        (store(block(None)), store(None, entry(B), entry(C)), ["refresh-b", "refresh-c"]),
        (None, store(block(B)), ["refresh-b"]),
        (store(block(A)), None, ["refresh-a"]),
    ],
    ids=["own", "own-without-login", "own-quarantined", "no-own", "no-root"],
)
def test_profile(tmp_path: Path, own: Json | None, root: Json | None, expected: list[str]) -> None:
    """A named profile's login comes first, and the root's stands in where it has none."""
    assert names(profile(tmp_path, own, root)) == expected


def test_profile_without_any_login(tmp_path: Path) -> None:
    """When neither store has a login, the profile's own problem is told."""
    with pytest.raises(StoreProblem) as caught:
        profile(tmp_path, None, store(None)).read()
    assert caught.value.code == "missing"
    assert "profiles/work" in caught.value.message


def test_write_back_in_both_files(tmp_path: Path) -> None:
    """A link that stands in the profile's store and in the root's is renewed in both."""
    hermes = profile(tmp_path, store(None, entry(A)), store(block(A), entry(B)))
    assert hermes.write_back(A, C) == 2
    assert names(hermes) == ["refresh-c"]
    assert content(hermes, 1)["providers"]["xai-oauth"]["tokens"]["refresh_token"] == "refresh-c"
    assert content(hermes, 1)["credential_pool"]["xai-oauth"][0]["refresh_token"] == "refresh-b"


def test_write_back_where_it_stands(tmp_path: Path) -> None:
    """A link of the root's store is renewed there, and the profile's store stays as it is."""
    hermes = profile(tmp_path, store(None), store(block(A)))
    before = hermes.fingerprint()
    assert hermes.write_back(A, C) == 1
    after = hermes.fingerprint()
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_damaged_profile_does_not_stop_the_other(tmp_path: Path) -> None:
    """A store that cannot be read is passed over when the successor is written."""
    hermes = profile(tmp_path, None, store(block(A)))
    hermes.paths[0].write_text("{")
    assert hermes.write_back(A, C) == 1
    assert hermes.paths[0].read_text() == "{"


def locks_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.lock"))


@pytest.mark.anyio
async def test_lock_of_both_files(tmp_path: Path) -> None:
    """The lock of each store is taken, beside it, where its folder exists."""
    hermes = profile(tmp_path, store(block(A)), None)
    async with hermes.lock():
        assert locks_below(tmp_path) == ["auth.lock", "profiles/work/auth.lock"]
    absent = HermesStore((tmp_path / "absent" / "auth.json", tmp_path / "auth.json"))
    async with absent.lock():
        assert locks_below(tmp_path / "absent") == []


def test_fingerprint(tmp_path: Path) -> None:
    """The fingerprint changes when a store is replaced, rewritten, touched or appears, and not else."""
    hermes = profile(tmp_path, None, store(block(A)))
    own, root = hermes.paths
    seen = [hermes.fingerprint()]
    assert hermes.fingerprint() == seen[0]

    def changed() -> bool:
        seen.append(hermes.fingerprint())
        return seen[-1] not in seen[:-1]

    replacement = root.with_name("new")
    replacement.write_bytes(root.read_bytes())
    status = root.stat()
    os.utime(replacement, ns=(status.st_mtime_ns, status.st_mtime_ns))
    replacement.replace(root)
    assert changed()
    root.write_text("{}")
    assert changed()
    os.utime(root, ns=(1, 1))
    assert changed()
    own.write_text("{}")
    assert changed()
    own.unlink()
    root.unlink()
    assert changed()
    assert seen[-1] == (None, None)


@as_root
@pytest.mark.parametrize("what", ["file", "folder", "lock"])
def test_unwritable(others_folder: Path, what: str) -> None:
    """A store is named when this user cannot write its file, its folder or its lock, and only then."""
    hermes = at(others_folder, store(block(A)))
    places = {"file": hermes.paths[0], "folder": others_folder, "lock": others_folder / "auth.lock"}
    places["lock"].touch()
    for place in places.values():
        place.chmod(0o777)
    statement = "print(HermesStore((Path(sys.argv[1]),)).unwritable())"
    assert as_nobody(statement, hermes.paths[0]).stdout == "None\n"
    places[what].chmod(0o555)
    assert as_nobody(statement, hermes.paths[0]).stdout == f"{hermes.paths[0]}\n"


@as_root
def test_sticky_folder(others_folder: Path) -> None:
    """In a folder like /tmp a file that belongs to another user can be written, but not replaced."""
    hermes = at(others_folder, store(block(A)))
    others_folder.chmod(0o1777)
    hermes.paths[0].chmod(0o666)
    statement = "print(HermesStore((Path(sys.argv[1]),)).unwritable())"
    assert as_nobody(statement, hermes.paths[0]).stdout == f"{hermes.paths[0]}\n"
    others_folder.chmod(0o777)
    assert as_nobody(statement, hermes.paths[0]).stdout == "None\n"


def test_writable(tmp_path: Path) -> None:
    """A store that can be written is fit for refreshing, and one that is absent is not in the way."""
    hermes = at(tmp_path, store(block(A)))
    assert hermes.unwritable() is None
    assert HermesStore((tmp_path / "absent.json", *hermes.paths)).unwritable() is None
