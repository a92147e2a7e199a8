"""What the shell tells of where a person sits: behind ssh, before a screen."""

from __future__ import annotations

import getpass
import os
import sys


def ssh_target() -> str | None:
    """What `ssh` on the other side takes to come here again, as `-p 22 me@192.0.2.1`; None without ssh."""
    parts = os.environ.get("SSH_CONNECTION", "").split()
    if len(parts) != 4 or not parts[3].isdigit():
        return "me@this-machine" if os.environ.get("SSH_TTY") else None
    address, port = parts[2], parts[3]
    target = f"{getpass.getuser()}@{address}"
    return target if port == "22" else f"-p {port} {target}"


def has_browser() -> bool:
    """Whether opening a page would show it to the person, not fill the terminal with it."""
    if os.environ.get("BROWSER"):
        return True
    screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return screen or (sys.platform == "darwin" and ssh_target() is None)
