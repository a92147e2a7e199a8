"""The file of named keys: what may stand in it, who may touch it, and that it never holds a key."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from grok_oauth_proxy.credentials.client_keys import KEY_LENGTH, MOST_KEYS, KeysFile, digest_of
from grok_oauth_proxy.errors import ProxyError, StoreProblem

pytestmark = pytest.mark.anyio

GOOD: dict[str, Any] = {"name": "app", "sha256": "ab" * 32, "added_at": "2026-07-20T12:00:00Z"}


@pytest.fixture
def file(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys.json")


def write(file: KeysFile, *keys: object, **more: object) -> None:
    file.path.write_text(json.dumps({"version": 1, "keys": list(keys)} | more))


async def add(file: KeysFile, name: str) -> str:
    return (await file.add(name, requests_per_minute=7, concurrent=None)).get_secret_value()


async def test_add_and_revoke(file: KeysFile) -> None:
    """A key is known once, as its digest afterwards, and gone when it is revoked; the file stays, private."""
    first, second = await add(file, "first"), await add(file, "sec.ond-2_")
    assert first != second
    assert len(first) == KEY_LENGTH
    assert first.startswith("gop_")
    assert [(key.name, key.digest, key.requests_per_minute) for key in file.load()] == [
        ("first", digest_of(first.encode()), 7),
        ("sec.ond-2_", digest_of(second.encode()), 7),
    ]
    assert first not in file.path.read_text()
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert await file.revoke("first") == 1
    with pytest.raises(ProxyError, match="no key first"):
        await file.revoke("first")
    assert await file.revoke("sec.ond-2_") == 0
    assert file.load() == ()


async def test_many_at_once(file: KeysFile) -> None:
    """Keys that are made at the same time are all kept; a name is taken once, and the room is limited."""
    await asyncio.gather(*(add(file, f"n{number}") for number in range(10)))
    assert len(file.load()) == 10
    with pytest.raises(ProxyError, match="There is a key n3 already"):
        await add(file, "n3")
    write(file, *(GOOD | {"name": f"n{n}", "sha256": f"{n:064x}"} for n in range(MOST_KEYS)))
    with pytest.raises(ProxyError, match="no more fit in"):
        await add(file, "one-more")


BAD: dict[str, object] = {
    "not-an-object": [],
    "later-version": {"version": 2, "keys": []},
    "without-keys": {"version": 1},
    "keys-no-list": {"version": 1, "keys": {"app": GOOD}},
    "unknown-member": {"version": 1, "keys": [], "more": 1},
    "no-name": {"version": 1, "keys": [{key: value for key, value in GOOD.items() if key != "name"}]},
    "empty-name": {"version": 1, "keys": [GOOD | {"name": ""}]},
    "long-name": {"version": 1, "keys": [GOOD | {"name": "x" * 65}]},
    "name-of-two-lines": {"version": 1, "keys": [GOOD | {"name": "a\n"}]},
    "two-of-a-name": {"version": 1, "keys": [GOOD, GOOD | {"sha256": "cd" * 32}]},
    "two-of-a-digest": {"version": 1, "keys": [GOOD, GOOD | {"name": "other"}]},
    "half-a-digest": {"version": 1, "keys": [GOOD | {"sha256": "ab"}]},
    "misspelt-limit": {"version": 1, "keys": [GOOD | {"request_per_minute": 1}]},
    "no-requests": {"version": 1, "keys": [GOOD | {"requests_per_minute": 0}]},
    "limit-as-text": {"version": 1, "keys": [GOOD | {"concurrent": "1"}]},
    "limit-as-truth": {"version": 1, "keys": [GOOD | {"concurrent": True}]},
    "no-time": {"version": 1, "keys": [GOOD | {"added_at": "yesterday"}]},
    "time-as-number": {"version": 1, "keys": [GOOD | {"added_at": 5}]},
    "too-many": {
        "version": 1,
        "keys": [GOOD | {"name": f"n{n}", "sha256": f"{n:064x}"} for n in range(MOST_KEYS + 1)],
    },
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
async def test_damaged(file: KeysFile, content: object) -> None:
    """What is not exactly such a file is refused with the next step, and not written over."""
    file.path.write_text(json.dumps(content))
    with pytest.raises(StoreProblem, match=r"is damaged: .*`grok-oauth-proxy keys add NAME`") as caught:
        file.load()
    assert caught.value.exit_code == 3
    with pytest.raises(StoreProblem):
        await add(file, "new")
    assert json.loads(file.path.read_text()) == content


async def test_privacy(file: KeysFile) -> None:
    """A file that others can use is closed to them, and that is said once."""
    write(file, GOOD)
    file.path.chmod(0o666)
    assert "is now private" in (file.make_private() or "")
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.make_private() is None
