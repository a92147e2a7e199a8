"""The log: one line a request, one line for whatever a person should know. No secret, no query, no body."""

from __future__ import annotations

import asyncio
import codecs
import logging
import sys
import threading
import time
from contextlib import suppress
from typing import Final, Literal, TextIO

from grok_oauth_proxy.events import (
    ChainAdopted,
    DrainStarted,
    Event,
    KeyUsedInstead,
    LoginChanged,
    RefreshFailed,
    RefreshSucceeded,
    RequestFinished,
    SettingsRefused,
    SettingsReloaded,
    StaleTokenRetry,
    StoreTrouble,
    UpstreamFailed,
    UpstreamRejected,
)
from grok_oauth_proxy.observe.json_lines import LONGEST, JsonFormatter, line, request_line

logger = logging.getLogger("grok_oauth_proxy")

codecs.lookup("unicode_escape")  # loaded now: where no file can be opened any more, lines are still written
_GATHERED_FOR: Final = 0.05
_IN_USE: Final = {"own": "The proxy's own login is now in use.", "hermes": "Hermes' login is now in use."}


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes to standard error. The lines of requests are made and written every 0.05 s, all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.write_as("text")
        self._gathered: list[tuple[float, RequestFinished]] = []
        self._gathering = threading.Lock()
        self._second = -1
        self._stamp = ""

    def write_as(self, form: Literal["text", "json"]) -> None:
        """From now on: lines for people, or an object a line for programs."""
        if form == "json":
            self.setFormatter(JsonFormatter())
        else:
            self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
        self._request_line = request_line if form == "json" else self._line

    def announce(self, sentence: str, *, level: Literal["info", "warning"]) -> None:
        """Whatever the level of the log; without a time where a person reads it."""
        if isinstance(self.formatter, JsonFormatter):
            sentence = line(time.time(), level, sentence)
        elif level == "warning":
            sentence = f"Warning: {sentence}"
        with suppress(OSError, ValueError):  # nobody reads it
            self.stream.write(sentence + "\n")
            super().flush()

    def write_soon(self, event: RequestFinished) -> None:
        """A line at level INFO; it costs a fraction of a `LogRecord`."""
        with self._gathering:
            self._gathered.append((time.time(), event))
            first = len(self._gathered) == 1
        if first:
            try:
                asyncio.get_running_loop().call_later(_GATHERED_FOR, self.flush)
            except RuntimeError:
                self.flush()

    def _line(self, at: float, event: RequestFinished) -> str:
        if (second := int(at)) != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
        method, path, status, duration, _, count_in, count_out, request_id, ending, _, key, _ = event
        if not _is_plain(path + request_id):
            path, request_id = _shown(path), _shown(request_id)
        return (
            f"{self._stamp},{int((at - second) * 1000):03d} INFO    {method} {path} {status} "
            f"{duration * 1000:.0f}ms in={count_in} out={count_out} {request_id}"
            f"{'' if ending == 'complete' else ' ' + ending}{'' if key is None else ' key=' + key}"
        )

    def emit(self, record: logging.LogRecord) -> None:
        self.flush()
        super().emit(record)

    def flush(self) -> None:
        with self._gathering:  # another thread may have something to say
            gathered, self._gathered = self._gathered, []
        with suppress(OSError, ValueError):  # nobody reads any more; nowhere is left to say so
            if gathered:
                self.stream.write("".join([self._request_line(at, event) + "\n" for at, event in gathered]))
            super().flush()


_lines = LineHandler()


def configure_logging(level: str, form: Literal["text", "json"] = "text") -> None:
    """Log to standard error from `level` upward, in this `form`; libraries only when something is wrong.

    httpx, httpcore and h11 write headers at debug level, the bearer among them, so they never get there.
    What uvicorn reports as errors (an answer cut short on purpose) is told by our own events.
    """
    _lines.setStream(sys.stderr)
    _lines.write_as(form)
    root = logging.getLogger()
    root.handlers[:] = [_lines]
    logger.setLevel(level.upper())
    for name in ("root", "httpx", "httpcore", "h11", "asyncio", "filelock"):
        logging.getLogger(name).setLevel(max(logger.level, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def announce(sentence: str, *, level: Literal["info", "warning"] = "info") -> None:
    """Tell, whatever the level, what a person who has just started the daemon wants to know."""
    _lines.announce(sentence, level=level)


def log_event(event: Event, /) -> None:
    """An observer."""
    if isinstance(event, RequestFinished):
        if logger.isEnabledFor(logging.INFO):
            _lines.write_soon(event)
    else:
        _log_news(event)


def _log_news(event: Event) -> None:
    match event:
        case RefreshSucceeded(lifetime=lifetime):
            logger.info("The access token was refreshed; the new one lives %.0f s.", lifetime)
        case RefreshFailed(reason=reason, message=message, terminal=terminal):
            logger.log(logging.ERROR if terminal else logging.WARNING, "%s [%s]", message, reason)
        case ChainAdopted(source=source):
            logger.info("Tokens written by %s are now in use.", source)
        case LoginChanged(source=source, message=message):
            if message:
                logger.warning("%s [own_login_dead]", message)
            else:
                logger.info(_IN_USE[source])
        case DrainStarted(open=0):
            logger.info("Ending.")
        case DrainStarted(open=count, timeout=timeout):
            logger.info("Ending: open answers (%d) get %.0f s. Told again, they are cut.", count, timeout)
        case StoreTrouble(code=code, message=message):
            logger.warning("%s [%s]", message, code)
        case SettingsReloaded() | SettingsRefused():
            _log_settings(event)
        case _:
            _log_upstream(event)


def _log_settings(event: SettingsReloaded | SettingsRefused) -> None:
    if isinstance(event, SettingsRefused):
        logger.error("The settings stay as they were: %s", event.message)
        return
    logger.info("The settings were read again. Changed: %s.", ", ".join(event.changed).upper() or "none")
    if event.wait:
        logger.warning("Changed too, but only a restart heeds it: %s.", ", ".join(event.wait).upper())


def _log_upstream(event: Event) -> None:
    match event:
        case UpstreamFailed(kind=kind):
            logger.warning("The Grok API gave no whole answer [%s].", kind)
        case StaleTokenRetry(outcome="success"):
            logger.info("The API refused the access token as stale; a newer one was accepted.")
        case StaleTokenRetry(outcome="failure"):
            logger.warning("The API keeps refusing the access token as stale. [stale_token]")
        case UpstreamRejected(kind=kind, meaning=meaning, remedy=remedy) if kind != "stale_token":
            logger.warning("%s %s [%s]", meaning, remedy, kind)
        case KeyUsedInstead():
            logger.warning("Sent with XAI_API_KEY instead, which is billed separately. [api_key_fallback]")


def _is_plain(text: str) -> bool:
    return len(text) <= LONGEST and text.isascii() and text.isprintable() and "\\" not in text


def _shown(text: str) -> str:
    """What somebody else chose, cut to a line's length and safe to write to a terminal."""
    text = text[:LONGEST]
    if _is_plain(text):
        return text
    return text.encode("unicode_escape").decode("ascii")
