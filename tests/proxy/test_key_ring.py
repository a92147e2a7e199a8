"""Named keys in force: whose a key is, what its limits leave, and a file that changes or breaks meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grok_oauth_proxy.credentials.client_keys import ClientKey, KeysFile, digest_of
from grok_oauth_proxy.errors import StoreProblem
from grok_oauth_proxy.events import Event, StoreTrouble
from grok_oauth_proxy.proxy.key_ring import Guest, KeyLimited, KeyRing

ONE, TWO = b"gop_" + b"1" * 43, b"gop_" + b"2" * 43


def guest(**limits: int) -> Guest:
    return Guest(ClientKey("app", b"", "", **limits))


def refused(one: Guest, now: float) -> tuple[str, int | None] | None:
    """Why a request at `now` is refused, and how long to wait; None when it is taken."""
    try:
        one.take(now)
    except KeyLimited as limited:
        return limited.code, limited.retry_after
    return None


def test_requests_per_minute() -> None:
    """Any minute has as many as allowed; the wait that is told is the shortest that helps."""
    one = guest(requests_per_minute=2)
    assert refused(one, 100.0) is None
    assert refused(one, 130.0) is None
    assert refused(one, 130.5) == ("key_rate_limited", 30)
    assert refused(one, 159.9) == ("key_rate_limited", 1)
    assert refused(one, 160.0) is None
    assert refused(one, 160.0) == ("key_rate_limited", 30)
    assert refused(one, 190.0) is None


def test_concurrent() -> None:
    """So many are open at once, and one that ends makes room; a refused one uses nothing up."""
    one = guest(concurrent=1, requests_per_minute=2)
    assert refused(one, 0.0) is None
    assert [refused(one, 0.0) for _ in range(5)] == [("key_busy", 1)] * 5
    one.give_back()
    assert refused(one, 0.0) is None
    one.give_back()
    assert refused(one, 0.0) == ("key_rate_limited", 60)


def test_new_limits() -> None:
    """Limits that change hold at once, and what was used before counts."""
    one = guest()
    for _ in range(5):
        one.take(0.0)
    one.allow(ClientKey("app", b"", "", concurrent=5))
    assert refused(one, 0.0) == ("key_busy", 1)
    one.allow(ClientKey("app", b"", "", requests_per_minute=3))
    assert [refused(one, 1.0) for _ in range(4)] == [None] * 3 + [("key_rate_limited", 60)]
    one.allow(ClientKey("app", b"", "", requests_per_minute=2))
    assert refused(one, 1.0) == ("key_rate_limited", 60)
    one.allow(ClientKey("app", b"", "", requests_per_minute=4))
    assert refused(one, 1.0) is None


class Scene:
    """A ring on a file, a clock that is moved by hand, and what was told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        self.now = 0.0
        self.told: list[Event] = []
        self.ring = KeyRing(KeysFile(self.path), self.told.append, lambda: self.now)

    def write(self, **keys: bytes) -> None:
        entries = [
            {"name": name, "sha256": digest_of(key).hex(), "added_at": "2026-07-20T12:00:00Z"}
            for name, key in keys.items()
        ]
        self.put(json.dumps({"version": 1, "keys": entries}))

    def put(self, text: str) -> None:
        """As it is written by us: another file in its place."""
        temporary = self.path.with_name("new")
        temporary.touch(mode=0o600)
        temporary.write_text(text)
        temporary.replace(self.path)

    def whose(self, key: bytes, *, after: float = 1.0) -> str | None:
        """The name that `key` is known by, so many seconds later."""
        self.now += after
        self.ring.look()
        found = self.ring.find(key)
        return found.name if found else None

    @property
    def codes(self) -> list[str]:
        return [event.code for event in self.told if isinstance(event, StoreTrouble)]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_keys_come_and_go(scene: Scene) -> None:
    """A change is seen within a second and not looked for in between; a name keeps what it has used."""
    scene.ring.open()
    assert not scene.ring.demanded
    scene.write(a=ONE)
    assert scene.whose(ONE, after=0.9) is None
    assert scene.whose(ONE, after=0.1) == "a"
    assert scene.ring.demanded
    used = scene.ring.find(ONE)
    scene.write(a=ONE, b=TWO)
    assert (scene.whose(TWO), scene.ring.find(ONE)) == ("b", used)
    scene.write(b=TWO)
    assert (scene.whose(ONE), scene.whose(TWO)) == (None, "b")
    scene.write()
    assert scene.whose(TWO) is None
    assert scene.ring.demanded
    assert repr(scene.ring) == "KeyRing([], demanded=True)"
    assert scene.told == []


@pytest.mark.parametrize("text", ["{", '{"version": 1, "keys": [{}]}', None], ids=["json", "shape", "gone"])
def test_a_file_that_breaks(scene: Scene, text: str | None) -> None:
    """The last good content stays in force, which is said once; a good file is taken over again."""
    scene.write(a=ONE)
    scene.ring.open()
    if text is None:
        scene.path.unlink()
    else:
        scene.put(text)
    assert [scene.whose(ONE) for _ in range(3)] == ["a"] * 3
    assert scene.ring.demanded
    assert scene.codes == ["keys_unusable"]
    scene.write(b=TWO)
    assert (scene.whose(ONE), scene.whose(TWO)) == (None, "b")
    assert scene.codes == ["keys_unusable"]


def test_a_file_that_can_be_read_again(scene: Scene) -> None:
    """What is mended without writing (mv, chmod) leaves the stamp as it is: it is taken over all the same."""
    scene.write(a=ONE)
    scene.ring.open()
    scene.write(b=TWO)
    elsewhere = scene.path.parent.parent / f"{scene.path.parent.name}.json"
    scene.path.rename(elsewhere)
    scene.path.symlink_to(elsewhere)
    assert [scene.whose(ONE) for _ in range(3)] == ["a"] * 3
    elsewhere.rename(scene.path)
    assert (scene.whose(ONE), scene.whose(TWO)) == (None, "b")
    assert scene.codes == ["keys_unusable"]


def test_a_first_file_that_is_broken(scene: Scene) -> None:
    """Where a file comes that cannot be read, nobody comes in by it, and no longer without a key."""
    scene.ring.open()
    scene.put("{")
    assert scene.whose(ONE) is None
    assert scene.ring.demanded
    with pytest.raises(StoreProblem, match="is damaged"):
        Scene(scene.path.parent).ring.open()


def test_an_open_file(scene: Scene) -> None:
    """A file that others may write is closed to them before it is read, and that is said."""
    scene.write(a=ONE)
    scene.path.chmod(0o666)
    scene.ring.open()
    assert scene.path.stat().st_mode & 0o777 == 0o600
    assert scene.codes == ["permissions_repaired"]


@pytest.mark.parametrize("key", [b"", b"gop_", ONE[:-1], ONE + b"1", ONE.upper(), digest_of(ONE)], ids=repr)
def test_no_key(scene: Scene, key: bytes) -> None:
    """Nothing but the whole key is one, its digest least of all."""
    scene.write(a=ONE)
    scene.ring.open()
    assert scene.ring.find(key) is None
    assert scene.whose(ONE) == "a"
