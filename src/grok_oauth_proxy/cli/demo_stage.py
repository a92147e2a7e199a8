"""The stage of the demo: a temporary home, the simulated xAI and the real proxy, each in a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

_PATIENCE = 20.0
_LIFETIME = 4
"""Seconds an access token lives in the demo."""


class StepFailed(Exception):
    """Something the demo shows did not hold; the text says what."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Both processes, ready. `api` is the proxy's address, `sim` the simulator's."""

    api: str
    sim: str
    proxy_log: list[str]
    home: Path

    def counters(self) -> dict[str, int]:
        counters: dict[str, int] = httpx.get(f"{self.sim}/_sim/state", trust_env=False).json()["counters"]
        return counters


@contextmanager
def stage() -> Iterator[Stage]:
    """Set up, and take everything down again. Raises `StepFailed` when a process does not come up."""
    with tempfile.TemporaryDirectory(prefix="grok-oauth-proxy-demo-") as home:
        simulator = ("-m", "grok_oauth_proxy.sim", "--access-lifetime", str(_LIFETIME))
        with _process(simulator, {}) as sim:
            sim_url = _first_match(sim.stdout, r'"url": "([^"]+)"', [])
            sign_in(Path(home), sim_url)
            settings = {
                "HOME": home,
                "HERMES_CLI_REQUIRED": "false",
                "GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM": "true",
                "XAI_BASE_URL": f"{sim_url}/v1",
                "XAI_OAUTH_ISSUER": sim_url,
                "PROXY_PORT": "0",
                "HERMES_POLL_INTERVAL": "0.5",
            }
            with _process(("-m", "grok_oauth_proxy", "serve"), settings) as proxy:
                log: list[str] = []
                url = _first_match(proxy.stderr, r"ready: (http://\S+)/v1", log)
                yield Stage(url, sim_url, log, Path(home))


@contextmanager
def _process(arguments: tuple[str, ...], settings: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    # Of this environment only what a process needs to run: no setting of the user's leaks into the demo.
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, *arguments],
        env=kept | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C ends the demo, and the demo ends these
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(_PATIENCE)


def _first_match(stream: IO[str] | None, pattern: str, lines: list[str]) -> str:
    """Collect a stream's lines for as long as the process lives; return the first that matches."""
    found, result = threading.Event(), ""

    def collect() -> None:
        nonlocal result
        for line in stream or ():
            lines.append(line.rstrip())
            if not found.is_set() and (match := re.search(pattern, line)):
                result = match[1]
                found.set()
        found.set()

    threading.Thread(target=collect, daemon=True).start()
    if not found.wait(_PATIENCE) or not result:
        raise StepFailed("A process did not come up. " + " ".join(lines[-1:]))
    return result


def sign_in(home: Path, sim_url: str) -> None:
    """Leave behind what `hermes model` would: a new login in Hermes' store."""
    reply: dict[str, Any] = httpx.post(f"{sim_url}/_sim/login", json={}, trust_env=False).json()
    tokens = {name: reply[name] for name in reply if name != "scope"}
    block = {"tokens": tokens, "auth_mode": "oauth_device_code"}
    store = {"version": 1, "providers": {"xai-oauth": block}, "active_provider": "xai-oauth"}
    auth = home / ".hermes" / "auth.json"
    auth.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = auth.with_name("auth.json.new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(store, indent=2))
    fresh.replace(auth)
