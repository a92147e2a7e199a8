"""Asks the tools of a service manager, which answer soon or not at all."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Final

from grok_oauth_proxy.moving.surroundings import service_environment

_PATIENCE: Final = 5.0


def told_by(command: Sequence[str]) -> str | None:
    """What it prints; None where it cannot be run, gives no answer in 5 seconds, or fails."""
    try:
        ended = subprocess.run(  # noqa: S603 - the system's own tools
            command,
            env=service_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.decode("utf-8", "replace") if ended.returncode == 0 else None
