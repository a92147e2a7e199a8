"""The screen of a command: colours on a terminal only, and never a failure to print a sign.

What comes from elsewhere is printed as plain text, without control characters: see `plain`.
"""

from __future__ import annotations

import io
import sys

from rich.console import Console

_MANY_SECONDS = 100 * 365 * 86400


def screen() -> Console:
    """Standard output. rich leaves colours out when it is no terminal, or when NO_COLOR is set."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ✓
    return Console(highlight=False)


def plain(text: str) -> str:
    """`text` in one line, without anything that could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def duration(seconds: float) -> str:
    """A span of time in two units at most: 42 s, 4 h 12 min, 3 d 1 h."""
    whole = int(min(abs(seconds), _MANY_SECONDS))
    for unit, size, next_unit, next_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size} {unit}" + (f" {rest} {next_unit}" if rest else "")
    return f"{whole} s"
