"""One line a request, one line for what a person should know, and no secret."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.events import (
    ChainAdopted,
    Event,
    RefreshFailed,
    RefreshSucceeded,
    RequestFinished,
    RequestStarted,
    StaleTokenRetry,
    StoreTrouble,
    UpstreamFailed,
    UpstreamRejected,
)
from grok_oauth_proxy.observe.log import configure_logging, log_event, logger
from grok_oauth_proxy.proxy.body import Keep
from grok_oauth_proxy.proxy.exchange import Exchange

LIBRARIES = (
    "httpx",
    "httpcore",
    "httpcore.http11",
    "h11",
    "asyncio",
    "filelock",
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "fastapi",
    "a-library-nobody-knows",
)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is the process's; what a test sets is put back."""
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in (*LIBRARIES, logger.name)}
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_libraries_stay_quiet(level: str) -> None:
    """At no level of ours does a library log below WARNING: some write headers at DEBUG."""
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger("httpcore").setLevel(logging.DEBUG)
    configure_logging(level)
    assert all(logging.getLogger(name).getEffectiveLevel() >= logging.WARNING for name in LIBRARIES)
    assert logger.getEffectiveLevel() == getattr(logging, level.upper())
    below = logging.getLogger("grok_oauth_proxy.bugs")
    assert below.getEffectiveLevel() == getattr(logging, level.upper())


def test_one_handler(capsys: pytest.CaptureFixture[str]) -> None:
    """However often logging is set up, a line comes once, on standard error, with its level."""
    for _ in range(3):
        configure_logging("info")
    logger.info("a line")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("a line") == 1
    assert "INFO" in err


REQUEST = RequestFinished("POST", "/v1/chat/completions", 200, 0.1234, 0.05, 10, 20, "req_1", "complete")

LINES: dict[str, tuple[Event, int, str]] = {
    "refreshed": (
        RefreshSucceeded(rotated=True, lifetime=21600.0),
        logging.INFO,
        "The access token was refreshed; the new one lives 21600 s.",
    ),
    "refresh-failed": (RefreshFailed("timeout", "Wait.", terminal=False), logging.WARNING, "Wait. [timeout]"),
    "signed-out": (
        RefreshFailed("invalid_grant", "Sign in.", terminal=True),
        logging.ERROR,
        "Sign in. [invalid_grant]",
    ),
    "adopted": (ChainAdopted("hermes"), logging.INFO, "Tokens written by hermes are now in use."),
    "store": (StoreTrouble("corrupt", "It is damaged."), logging.WARNING, "It is damaged. [corrupt]"),
    "upstream": (
        UpstreamFailed("timeout"),
        logging.WARNING,
        "The Grok API gave no whole answer [timeout].",
    ),
    "stale-saved": (
        StaleTokenRetry("success"),
        logging.INFO,
        "The API refused the access token as stale; a newer one was accepted.",
    ),
    "stale-lost": (
        StaleTokenRetry("failure"),
        logging.WARNING,
        "The API keeps refusing the access token as stale. [stale_token]",
    ),
    "refused": (
        UpstreamRejected("quota", "Used up.", "Wait.", "/v1/x", 0.0),
        logging.WARNING,
        "Used up. Wait. [quota]",
    ),
}


@pytest.mark.parametrize(("event", "level", "line"), LINES.values(), ids=LINES.keys())
def test_line(caplog: pytest.LogCaptureFixture, event: Event, level: int, line: str) -> None:
    """Each event is one line at the level a person would expect."""
    caplog.set_level(logging.DEBUG, logger=logger.name)
    log_event(event)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (level, line)


@pytest.mark.parametrize(
    "event",
    [RequestStarted(), StaleTokenRetry("attempt"), UpstreamRejected("stale_token", "m", "r", "/v1/x", 0.0)],
    ids=repr,
)
def test_no_line(caplog: pytest.LogCaptureFixture, event: Event) -> None:
    """What only leads up to something else is not logged."""
    caplog.set_level(logging.DEBUG, logger=logger.name)
    log_event(event)
    assert caplog.records == []


REQUESTS: dict[str, tuple[RequestFinished, str]] = {
    "whole": (REQUEST, "POST /v1/chat/completions 200 123ms in=10 out=20 req_1"),
    "truncated": (
        RequestFinished("GET", "/v1/x", 200, 1.0, 0.5, 0, 7, "req_2", "truncated"),
        "GET /v1/x 200 1000ms in=0 out=7 req_2 truncated",
    ),
    "client-gone": (
        RequestFinished("GET", "/v1/x", 499, 1.0, None, 0, 0, "-", "client_gone"),
        "GET /v1/x 499 1000ms in=0 out=0 - client_gone",
    ),
    "hostile": (
        RequestFinished("GET", "/v1/\x1b[2J\u202e\\", 200, 0.0, 0.0, 0, 0, "a\nb", "complete"),
        r"GET /v1/\x1b[2J\u202e\\ 200 0ms in=0 out=0 a\nb",
    ),
}
STAMPED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    (.*)")


@pytest.mark.parametrize(("event", "line"), REQUESTS.values(), ids=REQUESTS.keys())
def test_request_line(capsys: pytest.CaptureFixture[str], event: RequestFinished, line: str) -> None:
    """A request is one line with the time and level of any other, whatever is in its path and id."""
    configure_logging("info")
    log_event(event)
    (written,) = capsys.readouterr().err.splitlines()
    found = STAMPED.fullmatch(written)
    assert found
    assert found[1] == line


@pytest.mark.parametrize("level", ["warning", "error"])
def test_no_request_line(capsys: pytest.CaptureFixture[str], level: str) -> None:
    """Above INFO the requests are not logged."""
    configure_logging(level)
    log_event(REQUEST)
    assert capsys.readouterr().err == ""


@pytest.mark.anyio
async def test_gathered_lines_keep_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of requests are written by themselves a moment later, and before any line that comes after."""
    configure_logging("info")
    log_event(REQUEST)
    log_event(REQUEST)
    log_event(StoreTrouble("corrupt", "It is damaged."))
    log_event(REQUEST)
    await asyncio.sleep(0.1)  # longer than they are gathered for
    written = capsys.readouterr().err.splitlines()
    assert ["corrupt" in line for line in written] == [False, False, True, False]


async def never(_message: object = None) -> Any:
    raise AssertionError("nothing is read or sent here")


def test_no_query(capsys: pytest.CaptureFixture[str]) -> None:
    """The line of a request shows its path as it was sent, and neither query nor credentials."""
    client = SimpleNamespace(target=b"/v1/a%20b?key=canary", framing=[], take_body=lambda: b"")
    scope = {
        "method": "GET",
        "raw_path": b"/v1/a%20b",
        "query_string": b"key=canary",
        "http_version": "1.1",
        "state": {"client": client},
        "headers": [(b"authorization", b"Bearer canary"), (b"x-note", b"canary")],
    }
    exchange = Exchange(scope, never, never, Clock(), keep=Keep(0))
    configure_logging("debug")
    log_event(exchange.finished())
    written = capsys.readouterr().err
    assert "GET /v1/a%20b 499" in written
    assert "canary" not in written
    assert "?" not in written


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With LOG_FORMAT=json each line is one object, whatever stands in it; requests have their numbers."""
    configure_logging("info", "json")
    log_event(RequestFinished("GET", "/v1/\x1b\n", 200, 0.1234, 0.05, 10, 20, 'req_"1', "truncated", 0.04))
    log_event(StoreTrouble("corrupt", "It is\ndamaged."))
    request, trouble = map(json.loads, capsys.readouterr().err.splitlines())
    configure_logging("info")
    for told, level in ((request, "info"), (trouble, "warning")):
        assert datetime.fromisoformat(told.pop("time")).utcoffset() == timedelta()
        assert told.pop("level") == level
    assert request == {
        "message": "request",
        "method": "GET",
        "path": "/v1/\x1b\n",
        "status": 200,
        "duration_ms": 123,
        "ttfb_ms": 50,
        "upstream_ms": 40,
        "bytes_in": 10,
        "bytes_out": 20,
        "request_id": 'req_"1',
        "ending": "truncated",
        "key": None,
        "error": None,
    }
    assert trouble == {"message": "It is\ndamaged. [corrupt]"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_long_names(capsys: pytest.CaptureFixture[str], form: Literal["text", "json"]) -> None:
    """What a client or the API chose makes no line so long that a reader would cut it in two."""
    configure_logging("info", form)
    log_event(RequestFinished("GET", "/v1/" + "p" * 60_000, 200, 0, 0, 0, 0, "i" * 60_000, "complete", 0))
    configure_logging("info")
    assert len(capsys.readouterr().err) < 1500


@pytest.mark.parametrize(("level", "told"), [("debug", True), ("warning", True), ("error", False)])
def test_libraries_at_each_level(level: str, told: bool) -> None:
    """Libraries tell of what is wrong, and never of less, unless the level of the log says otherwise."""
    configure_logging(level)
    for library in map(logging.getLogger, ("httpx", "filelock", "something_else")):
        assert library.isEnabledFor(logging.WARNING) is told
        assert not library.isEnabledFor(logging.INFO)
    configure_logging("info")
