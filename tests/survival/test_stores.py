"""What may happen to the files while the proxy runs: full, locked, replaced, damaged, from the future."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import PATIENCE, Home, Proxy, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim
from tests.survival.scene import (
    ADOPTED,
    assert_intact,
    assert_refused,
    assert_served,
    expire_access,
    queue_fault,
    wait_until_served,
    wait_until_well,
    write_due_login,
)


def directory(auth: Path, _: str) -> None:
    auth.unlink()
    auth.mkdir()


def link_to_elsewhere(auth: Path, content: str) -> None:
    """To a store that is a whole one."""
    elsewhere = auth.parent.parent / "elsewhere.json"
    elsewhere.write_text(content)
    auth.unlink()
    auth.symlink_to(elsewhere)


def truncated(auth: Path, content: str) -> None:
    auth.write_text(content[: len(content) // 2])


def garbage(auth: Path, _: str) -> None:
    auth.write_bytes(b"\x00\xff garbage \x1b[31m")


def removed(auth: Path, _: str) -> None:
    auth.unlink()


REPLACED: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "directory": (directory, "unreadable"),
    "link to elsewhere": (link_to_elsewhere, "unsafe_link"),
    "truncated": (truncated, "corrupt"),
    "garbage": (garbage, "corrupt"),
    "removed": (removed, "missing"),
}


def put_back(home: Home, kept: Path) -> None:
    if home.auth.is_dir():
        home.auth.rmdir()
    kept.replace(home.auth)


@pytest.mark.parametrize("case", REPLACED)
def test_store_replaced(home: Home, own_sim: Sim, case: str) -> None:
    """Without its store the token in use serves on and no link is sent; put back, the store is used again."""
    replace, code = REPLACED[case]
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        content = home.auth.read_text()
        kept = home.auth.with_name("kept.json")
        kept.write_text(content)
        replace(home.auth, content)
        proxy.err.wait_for(rf"\[{code}\]")
        assert_served(proxy)
        assert proxy.health()["problem"]["code"] == code
        expire_access(own_sim)
        assert str(home.auth) in assert_refused(proxy, code)
        assert own_sim.counters()["token_requests"] == 0
        if case == "link to elsewhere":
            assert (home.path / "elsewhere.json").read_text() == content
            assert home.auth.is_symlink()
        put_back(home, kept)
        wait_until_served(proxy)
        assert_intact(home, own_sim)


def test_linked_store_at_the_start(home: Home, own_sim: Sim) -> None:
    """A proxy does not start on a store that is a link to elsewhere, and says what to do instead."""
    home.auth.touch()
    link_to_elsewhere(home.auth, json.dumps(provider_store(own_sim.login())))
    ended = run(environment(home, own_sim))
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert f"{home.auth} is a link to {home.path / 'elsewhere.json'}, outside its folder" in line
    assert "link the whole folder" in line


def test_linked_state_at_the_start(home: Home, own_sim: Sim) -> None:
    """A state file that is a link to elsewhere is refused, and what it leads to is not touched."""
    home.write_store(provider_store(own_sim.login()))
    elsewhere = home.path / "elsewhere.json"
    elsewhere.write_text("of somebody else")
    elsewhere.chmod(0o644)
    home.state.parent.mkdir(parents=True)
    home.state.symlink_to(elsewhere)
    ended = run(environment(home, own_sim))
    assert ended.returncode == 3
    assert "outside its folder" in ended.stderr
    assert (elsewhere.read_text(), elsewhere.stat().st_mode & 0o777) == ("of somebody else", 0o644)


def test_state_linked_while_running(home: Home, own_sim: Sim) -> None:
    """A link to elsewhere that takes the state file's place is not written through; the store is enough."""
    home.write_store(provider_store(own_sim.login()))
    elsewhere = home.path / "elsewhere.json"
    elsewhere.write_text("of somebody else")
    with proxy_running(home, own_sim) as proxy:
        assert_served(proxy)
        home.state.unlink()
        home.state.symlink_to(elsewhere)
        expire_access(own_sim)
        wait_until_served(proxy)
        assert any("outside its folder" in line for line in proxy.err.lines)
        assert elsewhere.read_text() == "of somebody else"
        assert_intact(home, own_sim)


def test_store_from_the_future(home: Home, own_sim: Sim) -> None:
    """A store in an unknown format serves, and its link is not spent; what Hermes writes there is used."""
    write_due_login(home, own_sim)
    future = home.read_store() | {"version": 99}
    home.write_store(future)
    with proxy_running(home, own_sim) as proxy:
        proxy.err.wait_for(r"has a format \(version 99\) that this proxy does not know.*\[unknown_version\]")
        assert_served(proxy)
        assert proxy.health()["problem"]["code"] == "unknown_version"
        assert own_sim.counters()["token_requests"] == 0
        assert home.read_store() == future
        home.write_store(provider_store(own_sim.login()) | {"version": 99})
        proxy.err.wait_for(ADOPTED)
        wait_until_well(proxy)
        assert_served(proxy)
        assert own_sim.counters()["token_requests"] == 0


def limit_files(proxy: Proxy, size: int) -> None:
    """No file may grow beyond so many bytes: to the process, the disk is full from here on."""
    resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def rotated_onto_a_full_disk(proxy: Proxy, sim: Sim, room: int) -> None:
    """The disk fills up while the answer to a refresh is on its way; `room` bytes are left for a file."""
    sim.http.get(f"/_sim/wait?counter=refreshes&n=1&timeout={PATIENCE}").raise_for_status()
    limit_files(proxy, room)


def test_full_after_the_server_rotated(home: Home, own_sim: Sim) -> None:
    """A new login that no file takes is kept, not used and not lost: it is written when there is room."""
    write_due_login(home, own_sim)
    queue_fault(own_sim, "slow=1")
    before = home.refresh_tokens()
    with proxy_running(home, own_sim) as proxy:
        rotated_onto_a_full_disk(proxy, own_sim, 0)
        proxy.err.wait_for(r"\[not_saved\]")
        assert_served(proxy)
        assert home.refresh_tokens() == before
        limit_files(proxy, resource.RLIM_INFINITY)
        wait_until_well(proxy)
        assert home.refresh_tokens() != before
        assert_intact(home, own_sim)


@pytest.mark.parametrize("killed", [False, True], ids=["freed", "killed and started anew"])
def test_full_for_the_store_alone(home: Home, own_sim: Sim, killed: bool) -> None:
    """A new login that only the state file takes goes into the store later, by this process or the next."""
    write_due_login(home, own_sim)
    large = home.read_store() | {"filling": "x" * 100_000}
    home.write_store(large)
    queue_fault(own_sim, "slow=1")
    before = home.refresh_tokens()
    with proxy_running(home, own_sim) as proxy:
        rotated_onto_a_full_disk(proxy, own_sim, 50_000)
        proxy.err.wait_for(r"still holds a spent token.*\[store_not_written\]")
        assert_served(proxy)
        assert home.refresh_tokens() == before
        if killed:
            proxy.process.kill()
            proxy.process.wait(PATIENCE)
        else:
            limit_files(proxy, resource.RLIM_INFINITY)
            wait_until_well(proxy)
    if killed:
        with proxy_running(home, own_sim) as proxy:
            assert_served(proxy)
    assert home.refresh_tokens() != before
    assert home.read_store()["filling"] == large["filling"]
    assert_intact(home, own_sim)


def test_state_from_the_future(home: Home, own_sim: Sim) -> None:
    """A state file of a newer version is left as it is: no start with it, and none is written over it."""
    home.write_store(provider_store(own_sim.login()))
    newer = '{"version": 2, "links": "of another kind"}'
    with proxy_running(home, own_sim) as proxy:
        assert_served(proxy)
        home.state.write_text(newer)
        expire_access(own_sim)
        wait_until_served(proxy)
        assert any("[foreign]" in line for line in proxy.err.lines)
    assert home.state.read_text() == newer
    ended = run(environment(home, own_sim))
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert f"{home.state} is no state file of this version" in line
    assert sorted(path.name for path in home.state.parent.iterdir()) == [home.state.name, "login.lock"]
    assert_intact(home, own_sim)
