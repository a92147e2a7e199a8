"""What happened, as frozen values, and the protocol of whoever wants to hear it.

The core emits these and imports none of its observers. No event holds a token, a key, a body or a query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

FAILURES: Final = (
    "bad_request",
    "broken_off",
    "certificate",
    "connect_timeout",
    "egress_refused",
    "invalid_answer",
    "timeout",
    "truncated",
    "unreachable",
)
"""Kinds of `UpstreamFailed`."""
LIMITS: Final = ("connections", "key_busy", "key_rate_limited", "requests", "streams")
"""Reasons of `RequestRefused`."""
REJECTIONS: Final = (
    "content",
    "entitlement",
    "no_credentials",
    "other",
    "permission",
    "quota",
    "rate_limit",
    "spending_limit",
    "stale_token",
)
"""Kinds of `UpstreamRejected`."""


class RequestStarted(NamedTuple):
    """A request has arrived. A tuple, because one is made for each; `key` as below."""

    key: str | None = None


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A request was refused because of a limit; `reason` is one of `LIMITS`."""

    reason: str


@dataclass(frozen=True, slots=True)
class StreamCounted:
    """One stream more is open (1), or one less (-1)."""

    change: Literal[1, -1]


class RequestFinished(NamedTuple):
    """A request ended. A tuple, because one is made for each request.

    Times are seconds; `ttfb` is None when no response head was sent, `upstream`, the API's own part of it,
    when the API gave none. `path` is as the client sent it, without the query. `ending` says how the exchange
    ended: complete, truncated (the upstream broke off), client_gone, or refused (answered by this proxy);
    `error` is the code of that answer. `key` is the name of the client's key; None for PROXY_API_KEY, which
    has none, and without any.
    """

    method: str
    path: str
    status: int
    duration: float
    ttfb: float | None
    bytes_in: int
    bytes_out: int
    request_id: str
    ending: Literal["complete", "truncated", "client_gone", "refused"]
    upstream: float | None = None
    key: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RefreshSucceeded:
    """The authorization server gave a new access token. `lifetime` is seconds."""

    rotated: bool
    lifetime: float


@dataclass(frozen=True, slots=True)
class RefreshFailed:
    """A refresh gave no token. `reason` is from a fixed set; `message` says what to do."""

    reason: str
    message: str
    terminal: bool


@dataclass(frozen=True, slots=True)
class ChainAdopted:
    """Tokens that another owner of the grant wrote to the store are now in use."""

    source: str


@dataclass(frozen=True, slots=True)
class LoginChanged:
    """Another login is in use from now on. `message`: what to do, when it is not what was wished for."""

    source: str
    message: str | None


@dataclass(frozen=True, slots=True)
class DrainStarted:
    """The proxy ends: no connection is accepted any more; `open` answers get `timeout` seconds."""

    open: int
    timeout: float


@dataclass(frozen=True, slots=True)
class SettingsReloaded:
    """The settings were read again: the names of those that `changed`, and that `wait` for a restart."""

    changed: tuple[str, ...]
    wait: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SettingsRefused:
    """The settings were read again and are bad, so that all stays as it was; `message` says what to do."""

    message: str


@dataclass(frozen=True, slots=True)
class StoreTrouble:
    """A credential file could not be read or written; `message` says what to do."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class StaleTokenRetry:
    """The API refused a token as stale: a refresh or resend was attempted, and how that went."""

    outcome: Literal["attempt", "success", "failure"]


@dataclass(frozen=True, slots=True)
class UpstreamFailed:
    """An attempt got no complete answer. `kind` is one of `FAILURES`."""

    kind: str


@dataclass(frozen=True, slots=True)
class UpstreamRejected:
    """The API refused a request; `kind` is one of `REJECTIONS`, `meaning` and `remedy` say it in words.

    `path` is as in `RequestFinished`; `at` in seconds, wall clock.
    """

    kind: str
    meaning: str
    remedy: str
    path: str
    at: float


class RateLimitsTold(NamedTuple):
    """An answer told what is left of the rate limits. A tuple, because many answers do; `at` as above.

    `left` has limit_requests, remaining_requests, limit_tokens and remaining_tokens, None where unknown.
    """

    left: dict[str, int | None]
    at: float


@dataclass(frozen=True, slots=True)
class KeyUsedInstead:
    """A request refused for entitlement went to the API with the API key, which is billed separately."""


Event = (
    RequestStarted
    | RequestFinished
    | RequestRefused
    | StreamCounted
    | RefreshSucceeded
    | RefreshFailed
    | ChainAdopted
    | LoginChanged
    | StoreTrouble
    | SettingsReloaded
    | SettingsRefused
    | DrainStarted
    | StaleTokenRetry
    | UpstreamFailed
    | UpstreamRejected
    | RateLimitsTold
    | KeyUsedInstead
)


class Observer(Protocol):
    """Hears every event, one at a time, from any thread. Must not block and must not raise."""

    def __call__(self, event: Event, /) -> None: ...
