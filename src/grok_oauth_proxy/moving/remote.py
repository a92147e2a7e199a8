"""The other end of a push: obeys one command a line and answers each with a line."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from grok_oauth_proxy.moving.channel import MARK
from grok_oauth_proxy.moving.document import check
from grok_oauth_proxy.moving.files import Json
from grok_oauth_proxy.moving.health import deep_health, running_proxy
from grok_oauth_proxy.moving.importing import Imported, import_login
from grok_oauth_proxy.moving.problems import Problem
from grok_oauth_proxy.moving.surroundings import look_around, service_environment

_UNIT = "grok-oauth-proxy"
_RESTARTED_WITHIN = 100.0
"""Seconds; the unit gives the proxy 90 to finish what it is doing."""

_UP_WITHIN = 30.0
_LOG = f"Look into its log: journalctl --user -u {_UNIT}"


def main() -> None:
    """Until the end of the input. Whatever goes wrong is an answer."""
    side = Remote()
    commands: dict[str, Callable[[Json], Json]] = {
        "hello": side.hello,
        "import": side.import_,
        "restart": side.restart,
        "health": side.health,
    }
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"ok": True, **commands[command["do"]](command)}
        except Problem as problem:
            answer = {"ok": False, "say": problem.message}
        except Exception as error:  # noqa: BLE001 - the other side wants an answer, and a traceback is none
            answer = {
                "ok": False,
                "unsure": True,
                "say": f"A bug there: {type(error).__name__}. Please report it.",
            }
        # A line of its own, whatever a login script left unfinished.
        print(f"\n{MARK}{json.dumps(answer)}", flush=True)


class Remote:
    """This machine, as the pushing side sees it."""

    def __init__(self) -> None:
        self._imported: Imported | None = None

    def hello(self, _command: Json) -> Json:
        surroundings = look_around()
        stores = [*surroundings.hermes_stores, surroundings.own]
        return {"python": platform.python_version(), "stores": [identity(path) for path in stores]}

    def import_(self, command: Json) -> Json:
        surroundings = look_around()
        document = check(command["document"], allow_loopback=surroundings.allow_loopback)
        self._imported = import_login(surroundings, document, own=command["own"], reset=True)
        return {
            "path": str(self._imported.keeper.path),
            "notes": list(self._imported.notes),
            "code": document.code,
        }

    def restart(self, _command: Json) -> Json:
        """Restart the unit, if there is an active one; any other proxy adopts the login by itself."""
        systemctl = shutil.which("systemctl")
        if systemctl and _run(systemctl, "is-active", "--quiet", _UNIT) == 0:
            if _run(systemctl, "restart", _UNIT) != 0:
                raise Problem(f"`systemctl --user restart {_UNIT}` failed there. {_LOG}")
            if not _comes_up():
                raise Problem(f"The restarted service does not come up. {_LOG}")
            return {"say": "The service was restarted."}
        if running_proxy(look_around()):
            return {"say": "No service to restart; the running proxy picks the login up by itself."}
        return {"say": "No proxy runs there; the next one to start uses the login."}

    def health(self, _command: Json) -> Json:
        surroundings = look_around()
        url = running_proxy(surroundings)
        if url is None or self._imported is None:
            return {"say": "Not asked: no proxy runs there."}
        return {"say": deep_health(self._imported.keeper, self._imported.document, url)}


def _comes_up() -> bool:
    deadline = time.monotonic() + _UP_WITHIN
    while not running_proxy(look_around()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.25)
    return True


def identity(path: Path) -> str | None:
    """Names the very file on the very machine, None when there is none."""
    try:
        status = path.stat()
        machine = Path("/proc/sys/kernel/random/boot_id")
        name = machine.read_text().strip() if machine.exists() else platform.node()
    except OSError:
        return None
    return f"{name} {status.st_dev} {status.st_ino}"


def _run(systemctl: str, *arguments: str) -> int:
    try:
        return subprocess.run(  # noqa: S603 - constant arguments
            [systemctl, "--user", *arguments],
            env=service_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_RESTARTED_WITHIN,
            check=False,
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return -1
