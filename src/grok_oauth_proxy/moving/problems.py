"""What stops a command: one sentence for the person, and the exit code."""

from __future__ import annotations


class Problem(Exception):
    """The message is safe to show: it holds no token, and ends with the next step. `exit_code` is 1 or 2."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class NoLogin(Problem):
    """There is no login here that lives."""


class Damaged(Problem):
    """A file says nothing that can be understood."""
