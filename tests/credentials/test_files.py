"""Files that are whole or not there, private from the first moment, and locked across processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grok_oauth_proxy.credentials.files import (
    locked,
    make_private,
    read_json,
    rehearse_write,
    set_aside,
    write_json,
)
from grok_oauth_proxy.errors import StoreProblem
from tests.credentials.users import NOBODY, as_nobody, as_root


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_round_trip(tmp_path: Path) -> None:
    """What was written is read again, and the file ends with a newline for those who look at it."""
    path = tmp_path / "a.json"
    content = {"text": "ü€", "nested": {"list": [1, 1.5, None, True, "\ud800"]}}
    write_json(path, content)
    assert read_json(path) == content
    assert path.read_text().endswith("}\n")


def test_never_torn(tmp_path: Path) -> None:
    """A reader that looks as fast as it can sees each of 200 versions whole or not at all."""
    path = tmp_path / "a.json"
    write_json(path, {"version": -1, "filling": []})
    seen: set[int] = set()
    done = threading.Event()
    failures: list[Exception] = []

    def look() -> None:
        while not done.is_set():
            try:
                content = json.loads(path.read_text())
                assert set(content["filling"]) <= {content["version"]}
                seen.add(content["version"])
            except Exception as error:  # noqa: BLE001 - the test reports it
                failures.append(error)
                return

    reader = threading.Thread(target=look)
    reader.start()
    for version in range(200):
        write_json(path, {"version": version, "filling": [version] * 500})
    done.set()
    reader.join()
    assert failures == []
    assert len(seen) > 1


def test_private_from_the_first_moment(tmp_path: Path) -> None:
    """Under a umask that allows everything, no file in the folder is ever open to others."""
    modes: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for item in list(os.scandir(tmp_path)):
                try:
                    modes.add(os.stat(item).st_mode & 0o777)  # noqa: PTH116 - no object a file, for speed
                except FileNotFoundError:
                    continue

    with umask(0):
        watcher = threading.Thread(target=look)
        watcher.start()
        for _ in range(100):
            write_json(tmp_path / "a.json", {"filling": ["x" * 1000] * 50})
        done.set()
        watcher.join()
    assert modes == {0o600}


def test_open_file_becomes_private(tmp_path: Path) -> None:
    """Replacing a file that others may read ends that."""
    path = tmp_path / "a.json"
    path.write_text("{}")
    path.chmod(0o644)
    write_json(path, {})
    assert mode(path) == 0o600


def test_reader_of_the_old_file(tmp_path: Path) -> None:
    """Whoever has the old file open goes on reading the old content."""
    path = tmp_path / "a.json"
    write_json(path, {"version": 1})
    with path.open() as before:
        write_json(path, {"version": 2})
        assert json.load(before) == {"version": 1}


def test_symbolic_link(tmp_path: Path) -> None:
    """A link to a file in its folder is followed: the file is replaced, the link stays, nothing else does."""
    (tmp_path / "real").mkdir()
    target, path = tmp_path / "real" / "a.json", tmp_path / "a.json"
    target.write_text("{}")
    path.symlink_to("real/a.json")
    write_json(path, {"version": 2})
    assert path.is_symlink()
    assert path.readlink() == Path("real/a.json")
    assert read_json(target) == {"version": 2}
    assert [item.name for item in target.parent.iterdir()] == ["a.json"]


def test_link_that_leads_elsewhere(tmp_path: Path) -> None:
    """A link to a file elsewhere is not read, written or made private, and it is said where it leads."""
    elsewhere, folder = tmp_path / "elsewhere.json", tmp_path / "folder"
    elsewhere.write_text("{}")
    elsewhere.chmod(0o644)
    folder.mkdir()
    path = folder / "a.json"
    path.symlink_to("../elsewhere.json")
    for use in (read_json, make_private):
        with pytest.raises(StoreProblem) as caught:
            use(path)
        assert caught.value.code == "unsafe_link"
        assert caught.value.message == (
            f"{path} is a link to {elsewhere}, outside its folder, so it is not used. "
            "Put the file itself there, or link the whole folder."
        )
    with pytest.raises(OSError, match="leads outside its folder"):
        write_json(path, {})
    with pytest.raises(OSError, match="leads outside its folder"):
        rehearse_write(path)
    assert (elsewhere.read_text(), mode(elsewhere)) == ("{}", 0o644)
    assert list(folder.iterdir()) == [path]


def test_linked_folder(tmp_path: Path) -> None:
    """A folder that is itself a link is used like any other."""
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    path = tmp_path / "folder" / "a.json"
    write_json(path, {"version": 2})
    rehearse_write(path)
    assert read_json(path) == {"version": 2}
    assert make_private(path) is False


@as_root
@pytest.mark.parametrize("before", ["{}", json.dumps({"filling": "x" * 10_000})])
def test_mounted_by_itself(tmp_path: Path, before: str) -> None:
    """A file that is a mount of its own, as in a container, is rewritten in its place, shorter or longer."""
    outside, inside = tmp_path / "outside.json", tmp_path / "a.json"
    outside.write_text(before)
    inside.touch()
    write = (
        "import sys; from pathlib import Path; from grok_oauth_proxy.credentials.files import write_json; "
    )
    write += "write_json(Path(sys.argv[2]), {'version': 2, 'filling': 'y' * 100})"
    script = 'mount --bind "$1" "$2" && exec "$0" -c "$3" "$1" "$2"'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, str(outside), str(inside), write]
    subprocess.run(command, check=True, timeout=30)
    assert read_json(outside) == {"version": 2, "filling": "y" * 100}
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.json", "outside.json"]


def test_no_temporary_left(tmp_path: Path) -> None:
    """After a success the file stands alone."""
    write_json(tmp_path / "a.json", {})
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_no_temporary_left_after_unencodable_content(tmp_path: Path) -> None:
    """Content that is no JSON leaves the old file and nothing beside it."""
    path = tmp_path / "a.json"
    write_json(path, {"version": 1})
    with pytest.raises(TypeError):
        write_json(path, {"bytes": b""})
    assert read_json(path) == {"version": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_no_temporary_left_where_a_folder_stands(tmp_path: Path) -> None:
    """A file that can't be moved into place is removed again, and the failure is an OSError."""
    path = tmp_path / "a.json"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_json(path, {})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("parent", ["missing", "file"])
def test_nowhere_to_write(tmp_path: Path, parent: str) -> None:
    """A folder that is not there is an OSError, not a folder made by accident."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"No such file|Not a directory"):
        write_json(tmp_path / parent / "a.json", {})
    assert not (tmp_path / "missing").exists()


@as_root
def test_folder_of_somebody_else(others_folder: Path) -> None:
    """A folder that may not be written keeps its old file whole, and gets no temporary one."""
    path = others_folder / "a.json"
    path.write_text('{"version": 1}')
    path.chmod(0o666)
    ended = as_nobody("write_json(Path(sys.argv[1]), {'version': 2})", path)
    assert "PermissionError" in ended.stderr
    assert read_json(path) == {"version": 1}
    assert list(others_folder.iterdir()) == [path]


@as_root
def test_owner_is_kept(tmp_path: Path) -> None:
    """A store that belongs to another user still does after root has replaced it: Hermes must read it."""
    path = tmp_path / "a.json"
    write_json(path, {})
    os.chown(path, NOBODY, NOBODY)
    write_json(path, {"version": 2})
    assert path.stat().st_uid == NOBODY


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "missing"),
        (b"", "corrupt"),
        (b"{", "corrupt"),
        (b"[]", "corrupt"),
        (b'"text"', "corrupt"),
        (b"null", "corrupt"),
        (b"\xff\xfe{", "corrupt"),
        (b'{"a": ' + b"[" * 100_000, "corrupt"),
        (b'{"a": ' + b"9" * 5000 + b"}", "corrupt"),
        (b'{"a": "' + b"x" * 16 * 1024 * 1024 + b'"}', "corrupt"),
    ],
    ids=["missing", "empty", "torn", "list", "text", "null", "not-utf-8", "deep", "long-number", "too-large"],
)
def test_unreadable(tmp_path: Path, content: bytes | None, code: str) -> None:
    """What is no JSON object is named with its file, in one line."""
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreProblem) as caught:
        read_json(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_folder_is_unreadable(tmp_path: Path) -> None:
    """A folder in place of a file is a problem of the store, not a crash."""
    with pytest.raises(StoreProblem) as caught:
        read_json(tmp_path)
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize(
    ("before", "repaired", "after"),
    [
        (0o600, False, 0o600),
        (0o400, False, 0o400),
        (0o700, False, 0o700),
        (0o644, True, 0o600),
        (0o660, True, 0o600),
        (0o602, True, 0o600),
        (0o777, True, 0o600),
    ],
    ids=oct,
)
def test_make_private(tmp_path: Path, before: int, repaired: bool, after: int) -> None:
    """A file open to others becomes private, one that is not stays as it is, and it is told which."""
    path = tmp_path / "a.json"
    path.touch()
    path.chmod(before)
    assert make_private(path) is repaired
    assert mode(path) == after
    assert make_private(path) is False


@as_root
def test_not_ours_to_make_private(tmp_path: Path) -> None:
    """Another user's file is left as it is."""
    path = tmp_path / "a.json"
    path.touch()
    path.chmod(0o644)
    os.chown(path, NOBODY, NOBODY)
    assert make_private(path) is False
    assert mode(path) == 0o644


@pytest.mark.parametrize("by_link", [False, True], ids=["itself", "behind a link"])
def test_only_files_are_made_private(tmp_path: Path, by_link: bool) -> None:
    """What stands in a file's place and is none, such as /dev/null, stays as it is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    pipe.chmod(0o666)
    path = pipe
    if by_link:
        path = tmp_path / "link"
        path.symlink_to(pipe)
    assert make_private(path) is False
    assert pipe.stat().st_mode & 0o777 == 0o666


def test_left_by_a_killed_process(tmp_path: Path) -> None:
    """What a process that was killed left half-written is removed later, and only that."""
    path = tmp_path / "auth.json"
    left = {
        name: tmp_path / name for name in (".auth.json.1.ab.tmp", ".auth.json.2.cd.tmp", ".other.1.ab.tmp")
    }
    for file in left.values():
        file.write_text("{")
        os.utime(file, (1, 1))
    left[".auth.json.2.cd.tmp"].touch()  # of a process that is writing now
    write_json(path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".auth.json.2.cd.tmp",
        ".other.1.ab.tmp",
        "auth.json",
    ]


def test_set_aside(tmp_path: Path) -> None:
    """Damaged files are kept under the first free number, and none overwrites another."""
    path = tmp_path / "a.json"
    names = []
    for content in "abc":
        path.write_text(content)
        kept = set_aside(path)
        assert not path.exists()
        assert kept.read_text() == content
        names.append(kept.name)
    assert names == ["a.json.corrupt-1", "a.json.corrupt-2", "a.json.corrupt-3"]


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
"""
TRIER = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("free")
    except BlockingIOError:
        print("taken")
"""


def tried(path: Path) -> str:
    """Whether another process could take the lock now."""
    return subprocess.run(
        [sys.executable, "-c", TRIER, str(path)], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()


@pytest.mark.anyio
async def test_lock_keeps_others_out(tmp_path: Path) -> None:
    """While the locks are held no other process gets one of them; afterwards it does, on the same file."""
    paths = (tmp_path / "one.lock", tmp_path / "two.lock")
    async with locked(paths):
        inodes = [path.stat().st_ino for path in paths]
        assert [await asyncio.to_thread(tried, path) for path in paths] == ["taken", "taken"]
        assert [mode(path) for path in paths] == [0o600, 0o600]
    assert [await asyncio.to_thread(tried, path) for path in paths] == ["free", "free"]
    assert [path.stat().st_ino for path in paths] == inodes


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds auth.lock until it is sent a line."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "auth.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.terminate()


@pytest.mark.anyio
async def test_lock_waits_for_others(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """A lock that another process holds is waited for without stopping the event loop, and then had."""
    entered = asyncio.Event()

    async def enter() -> None:
        async with locked((tmp_path / "auth.lock",)):
            entered.set()

    task = asyncio.create_task(enter())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(entered.wait(), 0.3)
    assert holder.stdin
    holder.stdin.write("\n")
    holder.stdin.flush()
    await asyncio.wait_for(task, 10)
    assert entered.is_set()


@pytest.mark.anyio
async def test_lock_of_ours_excludes_ours(tmp_path: Path) -> None:
    """Two tasks of one process do not hold the lock at the same time."""
    inside = most = 0

    async def work() -> None:
        nonlocal inside, most
        async with locked((tmp_path / "auth.lock",)):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(5)))
    assert most == 1


@pytest.mark.anyio
async def test_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    """What fails under the lock gives it back."""
    with pytest.raises(ZeroDivisionError):
        async with locked((tmp_path / "auth.lock",)):
            raise ZeroDivisionError
    assert await asyncio.to_thread(tried, tmp_path / "auth.lock") == "free"


@pytest.mark.anyio
async def test_lock_that_cannot_be(tmp_path: Path) -> None:
    """A lock file that cannot be opened is a problem of the store, and an earlier lock is given back."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreProblem) as caught:
        async with locked((tmp_path / "one.lock", tmp_path / "folder")):
            pass
    assert caught.value.code == "lock_failed"
    assert await asyncio.to_thread(tried, tmp_path / "one.lock") == "free"
