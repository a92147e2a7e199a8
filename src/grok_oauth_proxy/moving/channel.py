"""One ssh session, and these modules running at its other end from memory.

Law: no secret in any argument, and no file on either side. What the server starts is `python3 -c` with a
constant loader; the modules' source, then the commands, one JSON line each, arrive on its stdin. Answers are
lines that begin with a mark; what a login script prints besides is not listened to.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from grok_oauth_proxy.moving.files import Json
from grok_oauth_proxy.moving.problems import Problem
from grok_oauth_proxy.moving.surroundings import without_keys

MARK = "grok-oauth-proxy-answer "
_PACKAGE = "grok_oauth_proxy"
_MAX_LINE = 1024 * 1024
_PATIENCE = 180.0
"""Seconds for one answer; the longest, a restart and its health, has time limits of its own below that."""

# No single quote in it, and nothing that a shell, whichever it is, would touch within single quotes.
_LOADER = "import sys,json; exec(json.loads(sys.stdin.readline()))"

_BOOT = """
import sys
if sys.version_info < (3, 9):
    say = "Python 3.9 or newer is needed there; its python3 is " + sys.version.split()[0] + "."
    print("\\n" + MARK + json.dumps({"ok": False, "say": say}), flush=True)
    sys.exit(1)
import importlib.abc, importlib.util
class Memory(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    sources = json.loads(sys.stdin.readline())
    def find_spec(self, name, path=None, target=None):
        if name in self.sources:
            return importlib.util.spec_from_loader(name, self)
    def is_package(self, name):
        return any(other.startswith(name + ".") for other in self.sources)
    def get_source(self, name):
        return self.sources[name]
sys.meta_path.insert(0, Memory())
from grok_oauth_proxy.moving.remote import main
main()
"""


class Disconnected(Problem):
    """The session ended, or its other side is silent: nobody knows how far it came."""


@dataclass(frozen=True)
class Host:
    """Where to push to; what ssh is given."""

    name: str
    identity: Path | None = None

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith("-") or not self.name.isprintable() or " " in self.name:
            raise Problem("That is no host. Name it as in `ssh user@server`.", exit_code=2)
        if self.identity is not None and not self.identity.is_file():
            raise Problem(f"There is no key {self.identity}. Name the private key's file.", exit_code=2)

    def command(self) -> list[str]:
        ssh = shutil.which("ssh")
        if ssh is None:
            raise Problem("ssh is not on PATH. Install it (Debian: apt install openssh-client).")
        identity = ["-i", str(self.identity)] if self.identity else []
        # The server needs nothing of this machine, and forwardings of ~/.ssh/config may be in use by others.
        calm = ["-T", "-a", "-x", "-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none"]
        alive = ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
        return [ssh, *calm, *alive, *identity, "--", self.name, f"python3 -I -c '{_LOADER}'"]


class Channel:
    """Commands to the other side and its answers, one at a time."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self._process = process
        self._name = name
        self._buffer = b""

    def start(self) -> None:
        """Send the modules; who waits for a password does so now, without a time limit."""
        self._send(f"MARK = {MARK!r}\nimport json\n{_BOOT}", _sources())

    def ask(self, command: Json, *, timeout: float | None = _PATIENCE) -> Json:
        """The answer, a JSON object whose "ok" is true; raise `Problem` (`Disconnected` when none came)."""
        self._send(command)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            line = self._line(deadline)
            if line.startswith(MARK):
                break
        try:
            answer = json.loads(line[len(MARK) :])
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Disconnected(f"{self._name} gave an answer that makes no sense.")
        if answer.get("unsure"):
            raise Disconnected(plain(answer.get("say")))
        if answer.get("ok") is not True:
            raise Problem(plain(answer.get("say")))
        return answer

    def _send(self, *values: object) -> None:
        stdin = _pipe(self._process.stdin)
        try:
            for value in values:
                stdin.write(json.dumps(value).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise self._ended() from None

    def _line(self, deadline: float | None) -> str:
        stdout = _pipe(self._process.stdout)
        while b"\n" not in self._buffer:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not select.select([stdout], [], [], left)[0]:
                raise Disconnected(f"{self._name} is silent.")
            chunk = os.read(stdout.fileno(), 65536)
            if not chunk:
                raise self._ended()
            self._buffer += chunk
            if len(self._buffer) > _MAX_LINE:
                raise Disconnected(f"{self._name} sends no end of data.")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("utf-8", "replace")

    def _ended(self) -> Disconnected:
        code = self._process.wait()
        if code == 127:
            return Disconnected(
                f"{self._name} has no python3. Install it there (Debian: apt install python3)."
            )
        if code == 255:
            return Disconnected(f"ssh could not reach {self._name}, or lost it; its message is above.")
        return Disconnected(f"{self._name} ended the session (exit code {code}).")


@contextmanager
def connected(host: Host) -> Iterator[Channel]:
    """A session; the terminal stays with ssh, for a password or the question for a host's key."""
    with subprocess.Popen(  # noqa: S603 - the host is checked, and stands behind "--"
        host.command(), env=without_keys(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Channel(process, host.name)
        except BaseException:
            process.terminate()
            raise
        finally:
            with suppress(OSError):  # it may be gone, with something unsent
                _pipe(process.stdin).close()


def plain(value: object) -> str:
    """A sentence of the other side, without what a terminal would obey."""
    text = value if isinstance(value, str) else "It gave no reason."
    return "".join(character if character.isprintable() else " " for character in text)[:2000]


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("both are pipes")
    return pipe


def _sources() -> dict[str, str]:
    """This package's modules by name, and those it needs beside it; the package around is an empty one."""
    here = Path(__file__).parent
    name = f"{_PACKAGE}.{here.name}"
    sources = {_PACKAGE: "", name: ""}
    for beside in ("address", "settings_file"):
        sources[f"{_PACKAGE}.{beside}"] = here.with_name(f"{beside}.py").read_text(encoding="utf-8")
    for path in here.glob("*.py"):
        if path.stem != "__init__":
            sources[f"{name}.{path.stem}"] = path.read_text(encoding="utf-8")
    return sources
