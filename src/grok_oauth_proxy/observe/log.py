"""The log: one line a request, one line for whatever a person should know. No secret, no query, no body."""

from __future__ import annotations

import logging

from grok_oauth_proxy.events import (
    ChainAdopted,
    Event,
    RefreshFailed,
    RefreshSucceeded,
    RequestFinished,
    StaleTokenRetry,
    StoreTrouble,
    UpstreamFailed,
    UpstreamRejected,
)

logger = logging.getLogger("grok_oauth_proxy")


def configure_logging(level: str) -> None:
    """Log to standard error from `level` upward; libraries only when something is wrong.

    httpx, httpcore and h11 write headers at debug level, the bearer among them, so they never get there.
    What uvicorn reports as errors (an answer cut short on purpose) is told by our own events.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(level.upper())
    for name in ("httpx", "httpcore", "h11", "asyncio", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def log_event(event: Event, /) -> None:
    """An observer."""
    match event:
        case RequestFinished():
            ending = "" if event.ending == "complete" else f" {event.ending}"
            logger.info(
                "%s %s %d %.0fms in=%d out=%d %s%s",
                event.method,
                _shown(event.path),
                event.status,
                event.duration * 1000,
                event.bytes_in,
                event.bytes_out,
                _shown(event.request_id),
                ending,
            )
        case RefreshSucceeded(lifetime=lifetime):
            logger.info("The access token was refreshed; the new one lives %.0f s.", lifetime)
        case RefreshFailed(reason=reason, message=message, terminal=terminal):
            logger.log(logging.ERROR if terminal else logging.WARNING, "%s [%s]", message, reason)
        case ChainAdopted(source=source):
            logger.info("Tokens written by %s are now in use.", source)
        case StoreTrouble(code=code, message=message):
            logger.warning("%s [%s]", message, code)
        case UpstreamFailed(kind=kind):
            logger.warning("The Grok API gave no whole answer [%s].", kind)
        case StaleTokenRetry(outcome="success"):
            logger.info("The API refused the access token as stale; a newer one was accepted.")
        case StaleTokenRetry(outcome="failure"):
            logger.warning("The API keeps refusing the access token as stale. [stale_token]")
        case UpstreamRejected(kind=kind, meaning=meaning) if kind != "stale_token":
            logger.warning("%s [%s]", meaning, kind)


def _shown(text: str) -> str:
    """What somebody else chose, cut to a line's length and safe to write to a terminal."""
    return text[:500].encode("unicode_escape").decode("ascii")
