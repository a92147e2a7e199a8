"""The daemon as `serve` runs it; at SIGUSR1 it writes the number of its asyncio tasks to TASKS_FILE."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from grok_oauth_proxy.cli import main


def tell(*_: object) -> None:
    Path(os.environ["TASKS_FILE"]).write_text(str(len(asyncio.all_tasks())))


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, tell)
    main(["serve"])
