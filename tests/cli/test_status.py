"""`status` in a process of its own, beside real proxies and beside none."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.canned import Canned, canned
from tests.cli.own import own_login
from tests.harness import (
    PATIENCE,
    Home,
    Json,
    Output,
    environment,
    provider_store,
    proxy_running,
    run,
)
from tests.sim.harness import Sim, claims

KEY = "a-key-of-sixteen-or-more"
KEYS = {
    "running", "status", "message", "address", "base_url", "version", "credential_source", "owner",
    "account", "token_expires_at", "token_seconds_to_expiry", "last_refresh", "last_rejection",
    "rate_limits", "api_key_fallback", "problem", "unknown",
}  # fmt: skip


def status(env: dict[str, str]) -> tuple[int, Json]:
    """The exit code of `status --json` and its object."""
    ended = run(env, "status", "--json")
    assert ended.stderr == ""
    assert "eyJ" not in ended.stdout  # how every JWT begins
    view: Json = json.loads(ended.stdout)
    assert set(view) == KEYS
    return ended.returncode, view


def text(env: dict[str, str]) -> str:
    """What `status` prints for a person, its line breaks undone; each line fits into 80 columns."""
    ended = run(env, "status")
    assert "\x1b" not in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80
    return " ".join(ended.stdout.split())


def test_running(home: Home, shared_sim: Sim) -> None:
    """Beside a running proxy it tells what that proxy's /health tells, and ends with 0."""
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(home, shared_sim) as proxy:
        code, view = status(environment(home, shared_sim))
        health = proxy.health()
        shown = text(environment(home, shared_sim))
    assert code == 0
    assert view["running"] is True
    assert view["base_url"] == f"{proxy.url}/v1"
    for name in ("status", "version", "credential_source", "token_expires_at", "problem"):
        assert view[name] == health[name]
    assert abs(view["token_seconds_to_expiry"] - health["token_seconds_to_expiry"]) < 60
    assert view["last_refresh"]["failures"] == 0
    assert f"is running: {proxy.url}/v1" in shown
    assert "Status ok" in shown
    assert "expires in 5 h 59 min" in shown


def test_dead_login(home: Home, own_sim: Sim) -> None:
    """A login that died ends it with 1 and says how to sign in, running or not."""
    home.write_store(provider_store(own_sim.login()))
    env = environment(home, own_sim)
    with proxy_running(home, own_sim) as proxy:
        own_sim.http.post("/_sim/revoke").raise_for_status()
        assert proxy.http.get("/v1/models").status_code == 503
        code, view = status(env)
        assert (code, view["running"], view["status"]) == (1, True, "unauthenticated")
        assert view["problem"]["code"] == "invalid_grant"
        assert view["last_refresh"]["status"] == "failure"
    code, view = status(env)
    assert (code, view["running"], view["status"]) == (1, False, "not_running")
    assert view["problem"]["code"] == "invalid_grant"
    assert "Sign in again with" in text(env)


def test_not_running(home: Home, own_sim: Sim) -> None:
    """When nothing runs it tells the login a start would use; no file changes and nobody is asked."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim):
        pass
    tokens = home.read_store()["providers"]["xai-oauth"]["tokens"]
    before = contents(home.path)
    asked = own_sim.counters()
    code, view = status(environment(home, own_sim))
    assert (code, view["status"], view["running"]) == (1, "not_running", False)
    assert view["credential_source"] == "hermes"
    assert view["account"] == {"tier": 1, "principal_type": "User"}
    expiry = datetime.fromtimestamp(claims(tokens["access_token"])["exp"], UTC)
    assert view["token_expires_at"] == expiry.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert "Start it with `grok-oauth-proxy serve`" in view["message"]
    assert contents(home.path) == before
    assert own_sim.counters() == asked


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below, with its time of change and what is in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_damaged_state_is_left(home: Home, shared_sim: Sim) -> None:
    """A damaged state file is not set aside by looking: that is for a start to do."""
    home.write_store(provider_store(shared_sim.login()))
    home.state.parent.mkdir(parents=True, mode=0o700)
    home.state.write_text("{")
    before = contents(home.path)
    assert status(environment(home, shared_sim))[1]["problem"] is None
    assert contents(home.path) == before


def test_no_login(home: Home) -> None:
    """Without any login nobody's is shown, and the next step is to sign in: a start comes after that."""
    code, view = status(environment(home))
    assert code == 1
    assert view["problem"]["code"] == "missing"
    assert view["token_expires_at"] is None
    assert view["owner"] == "Nobody is signed in."
    shown = text(environment(home))
    assert "Login Nobody is signed in." in shown
    assert "is Hermes'" not in shown
    first, then = (
        "Sign in with `grok-oauth-proxy login`, or with `hermes",
        "Then start it with `grok-oauth-proxy serve`",
    )
    assert 0 < shown.index(first) < shown.index(then)


def test_logged_out(home: Home, own_sim: Sim) -> None:
    """After a logout it says that nobody is signed in, whether a proxy runs or not."""
    own_login(home, own_sim.login())
    env = environment(home, own_sim)
    with proxy_running(home, own_sim) as proxy:
        assert run(env, "logout", "--yes").returncode == 0
        proxy.err.wait_for("holds no login of the proxy's own")
        beside = text(env)
    for shown in (beside, text(env)):
        assert "Login Nobody is signed in." in shown
        assert "Owner" not in shown


def test_own_login(home: Home, shared_sim: Sim) -> None:
    """The proxy's own login comes before Hermes' while it lives; once dead, Hermes' is used, and told."""
    home.write_store(provider_store(shared_sim.login()))
    tokens = shared_sim.login()
    own_login(home, tokens)
    view = status(environment(home))[1]
    assert (view["credential_source"], view["problem"]) == ("own", None)
    own_login(home, tokens, dead="invalid_grant")
    view = status(environment(home))[1]
    assert view["credential_source"] == "hermes"
    assert view["problem"]["code"] == "invalid_grant"
    home.auth.unlink()
    view = status(environment(home))[1]
    assert (view["credential_source"], view["problem"]["code"]) == ("own", "invalid_grant")


def test_stale_address(home: Home, shared_sim: Sim) -> None:
    """An address where nothing answers any more, after a kill, is told apart from one that was never kept."""
    home.write_store(provider_store(shared_sim.login()))
    env = environment(home, shared_sim)
    with proxy_running(home, shared_sim) as proxy:
        proxy.process.kill()
        proxy.process.wait(PATIENCE)
        code, view = status(env)
    assert (code, view["status"], view["address"]) == (1, "no_answer", proxy.url)
    for damaged in ("", "http://127.0.0.1:99999", "http://[::::]:1"):
        (home.state.parent / "address").write_text(damaged + "\n")
        view = status(env)[1]
        assert (view["status"], view["address"]) == ("no_answer", None)
    (home.state.parent / "address").unlink()
    assert status(env)[1]["status"] == "not_running"


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (200, "<html>hello</html>"),
        (404, "{}"),
        (200, '{"status":"ok"}'),
        (401, '{"error":"who are you"}'),
        (200, "[" * 100_000),
    ],
    ids=["html", "404", "other-json", "other-401", "nested"],
)
def test_stranger(home: Home, code: int, body: str) -> None:
    """Another program at the old address is called that, and never sees the key."""
    with canned() as stranger:
        stranger.status, stranger.body = code, body
        stranger.pose_as_running(home)
        ended, view = status(environment(home, PROXY_API_KEY=KEY))
        assert (ended, view["status"], view["running"]) == (1, "other_program", False)
        assert stranger.asked == [("/health", None)]


def test_key(home: Home, shared_sim: Sim) -> None:
    """Beyond loopback the key is asked for: with it all is told, without it or with another what to set."""
    home.write_store(provider_store(shared_sim.login()))
    env = environment(home, shared_sim, PROXY_HOST="0.0.0.0")
    with proxy_running(home, shared_sim, PROXY_API_KEY=KEY, PROXY_HOST="0.0.0.0"):
        code, view = status(env | {"PROXY_API_KEY": KEY})
        assert (code, view["status"]) == (0, "ok")
        assert view["address"].startswith("http://127.0.0.1:")
        for extra in ({}, {"PROXY_API_KEY": KEY + "-not"}):
            code, view = status(env | extra)
            assert (code, view["status"], view["running"]) == (1, "wrong_key", True)
            assert "Set PROXY_API_KEY" in view["message"]


def told(said: Canned, **fields: object) -> None:
    """A report with everything a proxy can tell."""
    at = "2026-01-01T00:00:00Z"
    said.report(
        status="degraded",
        version="9.9",
        credential_source="own",
        owner="Nobody else refreshes it.",
        account={"tier": 3, "principal_type": "Team"},
        token_seconds_to_expiry=15145.0,
        token_expires_at="2026-01-01T04:12:25Z",
        oauth_refresh={"last_refresh_at": at, "last_refresh_status": "failure",
                       "last_refresh_error_class": "http_503",
                       "refresh_success_count": 4, "refresh_failure_count": 2},
        last_rejection={"kind": "spending_limit", "at": at, "meaning": "The limit is reached.",
                        "remedy": "Raise it."},
        rate_limits={"limit_requests": 480, "remaining_requests": 478, "limit_tokens": 4000000,
                     "remaining_tokens": 3999000, "at": at},
        api_key_fallback={"requests": 7},
        **fields,
    )  # fmt: skip


def test_everything_told(home: Home) -> None:
    """All that a proxy tells is shown: account, expiry, refresh, rejection with remedy, limits, key."""
    with canned() as proxy:
        proxy.pose_as_running(home)
        told(proxy)
        assert status(environment(home))[0] == 0
        shown = text(environment(home))
    for part in (
        "grok-oauth-proxy 9.9 is running",
        "Status degraded",
        "Nobody else refreshes it.",
        "tier 3, signed in as Team",
        "expires in 4 h 12 min",
        "failure (http_503); since its start 4 succeeded, 2 failed",
        "ago: spending limit. The limit is reached. Raise it.",
        "478 of 480 requests and 3,999,000 of 4,000,000 tokens left",
        "answered 7 requests",
    ):
        assert part in shown


def test_older_proxy(home: Home) -> None:
    """What an older proxy does not tell is unknown, and no error."""
    with canned() as proxy:
        proxy.pose_as_running(home)
        proxy.report()
        code, view = status(environment(home))
        shown = text(environment(home))
    assert (code, view["status"]) == (0, "ok")
    assert set(view["unknown"]) == {"owner", "account", "last_rejection", "rate_limits", "api_key_fallback"}
    assert "Last rejection unknown" in shown


def test_odd_report(home: Home) -> None:
    """A report with fields of the wrong type, or that would steer the terminal, does neither harm."""
    with canned() as proxy:
        proxy.pose_as_running(home)
        proxy.report(
            owner="\x1b]0;x\x07\x1b[31m[red]a[/red]", account=7, oauth_refresh=[], token_expires_at="soon",
            token_seconds_to_expiry=1e300,
            last_rejection={"at": 1e300}, rate_limits={"remaining_tokens": "x"},
        )  # fmt: skip
        assert status(environment(home))[0] == 0
        assert "[red]a[/red]" in text(environment(home))


def test_bad_setting(home: Home) -> None:
    """A bad setting is one line and exit code 2."""
    ended = run(environment(home, PROXY_PORT="many"), "status")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1


class Screen:
    """A terminal of 80 columns with a command on it."""

    def __init__(self, env: dict[str, str], *arguments: str) -> None:
        self._master, child = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grok_oauth_proxy", *arguments],
            env=env | {"TERM": "xterm", "COLUMNS": "80"},
            stdin=child,
            stdout=child,
            stderr=child,
        )
        os.close(child)
        self.shown = Output(self._lines())

    def _lines(self) -> Iterator[str]:
        rest = b""
        while chunk := self._read():
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in lines)
        yield rest.decode("utf-8", "replace")

    def _read(self) -> bytes:
        try:
            return os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return b""

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self.shown.text()
        os.close(self._master)


@contextmanager
def on_screen(env: dict[str, str], *arguments: str) -> Iterator[Screen]:
    screen = Screen(env, *arguments)
    try:
        yield screen
    finally:
        screen.close()


def test_watch(home: Home) -> None:
    """--watch shows a change without being asked again, and Ctrl-C ends it with 0 and the cursor shown."""
    with canned() as proxy:
        proxy.pose_as_running(home)
        proxy.report()
        with on_screen(environment(home), "status", "--watch") as screen:
            screen.shown.wait_for(r"Status.*ok")
            proxy.report(status="unauthenticated")
            screen.shown.wait_for(r"Status.*unauthenticated")
            screen.process.send_signal(signal.SIGINT)
            assert screen.process.wait(PATIENCE) == 0
            assert screen.shown.text().rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour(home: Home, no_color: str, coloured: bool) -> None:
    """On a terminal the status has a colour, unless NO_COLOR is set."""
    with canned() as proxy:
        proxy.pose_as_running(home)
        proxy.report()
        with on_screen(environment(home, NO_COLOR=no_color), "status") as screen:
            assert screen.process.wait(PATIENCE) == 0
            shown = screen.shown.text()
    assert "ok" in shown
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", shown)) is coloured


@pytest.mark.parametrize("arguments", [("--watch",), ("--watch", "--json")])
def test_watch_without_terminal(home: Home, arguments: tuple[str, ...]) -> None:
    """Without a terminal --watch is refused with exit code 2 and the way for scripts."""
    ended = run(environment(home), "status", *arguments)
    assert ended.returncode == 2
    assert "status --json" in ended.stderr


def test_ascii_terminal(home: Home) -> None:
    """Where the output knows no other signs than ASCII, it is printed all the same."""
    env = environment(home, PYTHONIOENCODING="ascii")
    for command in ("status", "doctor"):
        ended = run(env, command)
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr


def test_silent_proxy(home: Home) -> None:
    """A proxy that takes the connection and says nothing is given up in time."""
    with socket.create_server(("127.0.0.1", 0)) as listener, canned() as posing:
        posing.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        posing.pose_as_running(home)
        view = status(environment(home))[1]
    assert view["status"] == "no_answer"
    assert "gives no answer" in view["message"]
