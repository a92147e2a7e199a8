"""Where things of this install lie, as a service must know them: absolute, and seen by it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.settings import Settings
from grok_oauth_proxy.settings_file import settings_file

_NOT_SEEN: Final = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108 - a service has others


@dataclass(frozen=True, slots=True)
class Places:
    """`program`: the words that start it. `writable`: folders, the one of the proxy's state first.

    `read`: further files that the settings name.
    """

    program: tuple[str, ...]
    settings_file: Path
    writable: tuple[Path, ...]
    read: tuple[Path, ...]

    @property
    def state(self) -> Path:
        return self.writable[0]


def this_program() -> tuple[str, ...]:
    """The words that start this install from anywhere."""
    script = Path(sys.executable).absolute().with_name("grok-oauth-proxy")
    try:
        script.stat()
    except FileNotFoundError:
        return (sys.executable, "-m", "grok_oauth_proxy")
    return (str(script),)


def command_line(*words: str, as_root: bool) -> str:
    """A command of this program to type; its path is in it, because sudo does not search the user's PATH."""
    return shlex.join([*(["sudo"] if as_root else []), *this_program(), *words])


def find_places(settings: Settings) -> Places:
    """The places of this install, and those that the settings name. Raises `ProxyError`."""
    try:
        program = this_program()
    except PermissionError as error:  # for another person than who runs this
        raise ProxyError(
            f"{error.filename} is out of reach for that user. Install this program where they can run it.",
            code="bad_place",
        ) from None
    files = [settings.grok_proxy_auth_state, *settings.hermes_stores]
    if settings.proxy_uds:
        files.append(settings.proxy_uds)
    folders = tuple(dict.fromkeys(path.absolute().parent for path in files))
    for path in (Path(program[0]), *folders, *files):
        if not str(path).isprintable():
            raise ProxyError("A path has control characters in it. Move that folder.", code="bad_place")
    named = (settings.proxy_tls_cert, settings.proxy_tls_key, settings.keys_file)
    return Places(program, settings_file(), folders, tuple(path.absolute() for path in named if path))


def hidden(places: Places) -> Path | None:
    """The first of them that a service with a /tmp of its own does not see."""
    for path in (Path(places.program[0]), *places.writable, *places.read):
        if any(path.is_relative_to(folder) for folder in _NOT_SEEN):
            return path
    return None
