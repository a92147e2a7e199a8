"""The file that holds settings for a service: ~/.config/grok-oauth-proxy.env, one NAME=value a line.

Law: only its owner can read or write it, else it is refused; every line is understood, or it is refused.
It needs nothing but Python, because the scripts that move a login read it too.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*)")
_QUOTED = re.compile(r"\"([^\"]*)\"|'([^']*)'")
_LARGEST = 64 * 1024
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class BadSettingsFile(ValueError):
    """It cannot be used; the text is a sentence and the next step, and shows no value."""


def settings_file() -> Path:
    """Where it is, or would be. Raises RuntimeError where no home directory is known."""
    return Path.home() / ".config/grok-oauth-proxy.env"


def read_settings_file(path: Path) -> dict[str, str]:
    """Names and values; none where there is no file. Raises `BadSettingsFile`."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            found = os.fstat(file.fileno())
            content = file.read(_LARGEST + 1) if stat.S_ISREG(found.st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise BadSettingsFile(
            f"{path} cannot be read: {error.strerror}. Make it readable, or remove it."
        ) from None
    if content is None or len(content) > _LARGEST:
        raise BadSettingsFile(f"{path} is no file of settings. Replace or remove it.")
    if found.st_uid not in (os.geteuid(), 0):
        raise BadSettingsFile(f"{path} belongs to another user. Make it your own, or remove it.")
    if found.st_mode & _OF_OTHERS:
        raise BadSettingsFile(f"{path} is open to others, and may hold keys. Run: chmod 600 {path}")
    return dict(_settings(path, content))


def name_in(line: str) -> str | None:
    """The name that a line of the file gives a value; None where it gives none."""
    match = _LINE.fullmatch(line.strip())
    return match[1] if match else None


def _without_waiting(path: str, flags: int) -> int:
    """A pipe in its place would be waited for until somebody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _settings(path: Path, content: bytes) -> list[tuple[str, str]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSettingsFile(f"{path} is not UTF-8 text. Write it anew.") from None
    settings = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if not bare or bare[0] in "#;":
            continue
        match = _LINE.fullmatch(bare)
        if match is None or "\0" in bare:
            raise BadSettingsFile(f"{path}, line {number}: not of the form NAME=value. Correct it.")
        name, value = match.groups()
        if quoted := _QUOTED.fullmatch(value):
            value = quoted[1] if quoted[1] is not None else quoted[2]
        elif value[:1] in ("'", '"'):
            raise BadSettingsFile(f"{path}, line {number}: the quotes are not closed. Correct it.")
        settings.append((name, value))
    return settings
