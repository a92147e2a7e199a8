"""What one check of `doctor` found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from grok_oauth_proxy.errors import ProxyError


@dataclass(frozen=True, slots=True)
class Finding:
    """`sentence` says what is, `fix` what to do about it; no secret is in either.

    `state`: ok, wrong, or note, which is neither: it does not apply here, or is only worth knowing.
    """

    name: str
    state: Literal["ok", "wrong", "note"]
    sentence: str
    fix: str | None = None


Check = Callable[[], list[Finding]]


def ok(name: str, sentence: str) -> Finding:
    return Finding(name, "ok", sentence)


def note(name: str, sentence: str, fix: str | None = None) -> Finding:
    return Finding(name, "note", sentence, fix)


def wrong(name: str, sentence: str, fix: str) -> Finding:
    return Finding(name, "wrong", sentence, fix)


def cause_and_fix(message: str) -> tuple[str, str]:
    """The two parts of a message that ends with the next step."""
    cause, _, fix = message.partition(". ")
    return (f"{cause}.", fix) if fix else (message, "")


def of_error(name: str, error: ProxyError) -> Finding:
    """An error's message, which ends with the next step."""
    cause, fix = cause_and_fix(error.message)
    return Finding(name, "wrong", cause, fix or None)
