"""The proxy as a test sees it: a real process in a temporary home, its output, and a client for it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.sim.harness import NO_CERTIFICATES, Sim, client

Json = dict[str, Any]
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
"""Runs a command so that file permissions count, for root too."""

PATIENCE = 30.0
"""Seconds after which something that should have happened counts as not happening."""


class Output:
    """What a process writes to a pipe, line by line, and the means to wait for a line."""

    def __init__(self, stream: Any) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: Any) -> None:
        with suppress(ValueError):  # it was closed, by a test that has seen enough
            for line in stream:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """The first match at or after line number `after`; fails when the process ends or patience does."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found[:] = [match for line in self.lines[after:] if (match := re.search(pattern, line))]
            return bool(found) or self._ended

        with self._news:
            self._news.wait_for(look, PATIENCE)
        assert found, f"no line matches {pattern!r} in:\n" + "\n".join(self.lines[after:])
        return found[0]

    def text(self) -> str:
        """Everything, once the process has ended."""
        self._reader.join(PATIENCE)
        return "\n".join(self.lines)


@dataclass
class Home:
    """A temporary home with a Hermes store of the shape Hermes 0.19.0 writes."""

    path: Path
    auth: Path = field(init=False)

    def __post_init__(self) -> None:
        self.auth = self.path / ".hermes" / "auth.json"
        self.auth.parent.mkdir(mode=0o700, exist_ok=True)

    @property
    def state(self) -> Path:
        return self.path / ".local/state/grok-oauth-proxy/auth_state.json"

    def write_store(self, store: Json) -> None:
        """As Hermes writes it: a temporary file of mode 0600, then a rename."""
        temporary = self.auth.with_name("auth.json.tmp")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(store, indent=2) + "\n")
        temporary.replace(self.auth)

    def read_store(self) -> Json:
        store: Json = json.loads(self.auth.read_text())
        return store

    def refresh_tokens(self) -> set[str]:
        """Every refresh token that stands in the store's places for xAI."""
        store = self.read_store()
        block = store.get("providers", {}).get("xai-oauth", {}).get("tokens", {})
        pool = store.get("credential_pool", {}).get("xai-oauth", [])
        return {place["refresh_token"] for place in (block, *pool) if place.get("refresh_token")}


def provider_store(tokens: Json) -> Json:
    """The shape `hermes model` leaves behind, mirror in the pool included."""
    return {
        "version": 1,
        "providers": {
            "xai-oauth": {
                "tokens": {key: value for key, value in tokens.items() if key != "scope"},
                "last_refresh": "2026-07-20T12:00:00Z",
                "auth_mode": "oauth_device_code",
                "discovery": {"token_endpoint": "https://auth.x.ai/oauth2/token"},
                "redirect_uri": "",
            },
            "nous": {"access_token": "of-somebody-else"},
        },
        "credential_pool": {"xai-oauth": [pool_entry(tokens, source="device_code")]},
        "active_provider": "xai-oauth",
        "unknown": {"key": ["kept", 1, None]},
    }


def pool_store(tokens: Json) -> Json:
    """The shape `hermes auth add xai-oauth` leaves behind."""
    return {
        "version": 1,
        "providers": {},
        "credential_pool": {"xai-oauth": [pool_entry(tokens, source="manual:device_code")]},
        "active_provider": "xai-oauth",
    }


def pool_entry(tokens: Json, *, source: str) -> Json:
    return {
        "id": "a1b2c3",
        "label": "me",
        "auth_type": "oauth",
        "priority": 0,
        "source": source,
        "access_token": tokens["access_token"],
        "refresh_token": tokens["refresh_token"],
        "last_status": None,
        "base_url": "https://api.x.ai/v1",
        "last_refresh": "2026-07-20T12:00:00Z",
        "request_count": 0,
    }


@dataclass
class Proxy:
    """A running proxy."""

    url: str
    home: Home
    http: httpx.Client
    process: subprocess.Popen[str]
    err: Output

    def health(self) -> Json:
        report: Json = self.http.get("/health").json()
        return report

    def metric(self, sample: str) -> float:
        """The value of one sample, 0 when it has never been counted."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(sample + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def dial(self) -> socket.socket:
        """A bare connection to it."""
        host, port = self.url.partition("://")[2].split(":")
        return socket.create_connection((host, int(port)), PATIENCE)

    def stop(self) -> int:
        """SIGTERM, then the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def environment(home: Home, sim: Sim | None = None, **settings: object) -> dict[str, str]:
    """What the proxy gets to see: this Python, the temporary home, the simulator and the settings."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home.path),
        "HERMES_CLI_REQUIRED": "false",
        "PROXY_PORT": "0",
    }
    if sim is not None:
        env |= {
            "GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM": "true",
            "XAI_BASE_URL": f"{sim.url}/v1",
            "XAI_OAUTH_ISSUER": sim.url,
            "HERMES_POLL_INTERVAL": "0.1",
            "UPSTREAM_RETRY_DELAY": "0.05",
        }
    return env | {name: str(value) for name, value in settings.items()}


def write_expired_login(home: Home, sim: Sim) -> None:
    """A login whose access token the simulator refuses already, being past its life."""
    home.write_store(provider_store(sim.login(access_lifetime=1, age=60)))


@contextmanager
def proxy_running(
    home: Home,
    sim: Sim | None = None,
    *,
    by: tuple[str, ...] = (),
    trust: ssl.SSLContext = NO_CERTIFICATES,
    **settings: object,
) -> Iterator[Proxy]:
    """`serve` in a process of its own, ready; ended by its id on the way out. `trust`: its client's."""
    with ending(start(environment(home, sim, **settings), by=by)) as process:
        err = Output(process.stderr)
        url = err.wait_for(r"ready: (https?://\S+)/v1")[1]
        with client(url, timeout=PATIENCE, tls=trust) as http:
            yield Proxy(url, home, http, process, err)


@contextmanager
def before_bare_api(
    home: Home, sim: Sim, *, warm: int = 0, read_timeout: float = 3600, body_timeout: float = 60
) -> Iterator[tuple[socket.socket, Proxy]]:
    """A proxy whose API is a listening socket and no more; `warm` connections are opened before a request."""
    home.write_store(provider_store(sim.login()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with proxy_running(
            home,
            sim,
            XAI_BASE_URL=url,
            UPSTREAM_WARM_CONNECTIONS=warm,
            UPSTREAM_READ_TIMEOUT=read_timeout,
            PROXY_BODY_TIMEOUT=body_timeout,
        ) as proxy:
            yield listener, proxy


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, ended by its id on the way out, whatever happened."""
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def start(env: dict[str, str], *arguments: str, by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """The command line, both outputs piped; `serve` without arguments. `by` is a command that runs it."""
    return subprocess.Popen(
        [*by, sys.executable, "-m", "grok_oauth_proxy", *(arguments or ("serve",))],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        close_fds=False,  # `by` may hand sockets over
    )


def run(env: dict[str, str], *arguments: str, by: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    with ending(start(env, *arguments, by=by)) as process:
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
