"""One side of a move: a machine's home, and the commands that are run there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import PATIENCE, Home, Json, Output, environment, provider_store
from tests.sim.harness import Sim

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = {"export": "export", "import": "import", "push": "refresh_remote"}
BARE = (sys.executable, "-I", "-S")
"""A Python that sees no installed package."""

Ended = subprocess.CompletedProcess[str]


@dataclass
class Side:
    """`sim`: where its proxy's settings lead."""

    home: Home
    sim: Sim | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, sim: Sim | None = None) -> Side:
        path.mkdir(exist_ok=True)
        return cls(Home(path), sim)

    @property
    def own(self) -> Path:
        return self.home.state.with_name("login.json")

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.home, self.sim, **self.settings)

    def run(self, *arguments: str, given: str = "") -> Ended:
        """A command, with this on its stdin."""
        return self.run_by(command(*arguments), given=given)

    def run_by(self, command: list[str], *, given: str = "") -> Ended:
        return subprocess.run(
            command,
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def export(self, *options: str) -> Json:
        """The document; fails when the command did."""
        ended = self.run("export", *options)
        assert ended.returncode == 0, ended.stderr
        document: Json = json.loads(ended.stdout)
        return document

    @contextmanager
    def moving(self, *options: str) -> Iterator[Moving]:
        """`export --move`, when it has printed the document and waits for the code."""
        with subprocess.Popen(
            command("export", "--move", *options),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                err = Output(process.stderr)
                err.wait_for("Import it on the other side now")
                assert process.stdout
                yield Moving(process, process.stdout.read(), err)
            finally:
                process.kill()

    def sign_in(self, sim: Sim, **fields: object) -> Json:
        """A new login in Hermes' store."""
        tokens = sim.login(**fields)
        self.home.write_store(provider_store(tokens))
        return tokens

    def write_books(self, **changes: object) -> None:
        """The proxy's bookkeeping, with these fields."""
        self.home.state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home.state.write_text(json.dumps(books(**changes)))

    def read_books(self) -> Json:
        content: Json = json.loads(self.home.state.read_text())
        return content

    def files(self) -> dict[str, str]:
        """Every file below the home with what is in it, lock files left out."""
        found = [path for path in self.home.path.rglob("*") if path.is_file() and path.suffix != ".lock"]
        return {str(path.relative_to(self.home.path)): path.read_text() for path in found}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hermes' lock, held by somebody else."""
        descriptor = os.open(self.home.auth.with_name("auth.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        descriptor = os.open(self.home.auth.with_name("auth.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


@dataclass
class Moving:
    """A running `export --move`."""

    process: subprocess.Popen[str]
    document: str
    err: Output

    def type(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def answer(self, line: str | None) -> int:
        """Type this line, or end the input with None; the exit code."""
        if line is not None:
            self.type(line + "\n")
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(PATIENCE)


def command(name: str, *arguments: str, by: tuple[str, ...] = BARE) -> list[str]:
    """How a person without an install runs `export`, `import` or `push`."""
    return [*by, str(ROOT / "scripts" / f"{SCRIPTS[name]}_xai_oauth.py"), *arguments]


def link(refresh_token: str) -> str:
    """The fingerprint by which the bookkeeping names a link."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()[:32]


def books(**changes: object) -> Json:
    return {
        "version": 1,
        "provider": "xai-oauth",
        "source": "hermes",
        "client_id": None,
        "tokens": None,
        "successors": {},
        "dead": {},
        "last_refresh": {},
        "sending": None,
    } | changes


def as_kept(tokens: Json) -> Json:
    """Tokens as the bookkeeping and the own login hold them."""
    names = ("access_token", "refresh_token", "id_token", "token_type", "expires_in")
    return {name: tokens.get(name) for name in names} | {"issued_at": 0.0, "expires_at": None}


def code_in(text: str) -> str:
    """The confirmation code that an import showed."""
    (line,) = [line for line in text.splitlines() if line.startswith("Confirmation code: ")]
    return line.removeprefix("Confirmation code: ")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def is_silent_about(ended: Ended, tokens: Json) -> bool:
    """Neither output holds a token."""
    secrets = [tokens[name] for name in ("access_token", "refresh_token", "id_token")]
    return not any(secret in ended.stdout + ended.stderr for secret in secrets)
