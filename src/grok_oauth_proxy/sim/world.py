"""Everything the simulator remembers, shared by the authorization server, the API and the control API."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from grok_oauth_proxy.sim.config import Config
from grok_oauth_proxy.sim.directives import Directives
from grok_oauth_proxy.sim.exchange import Record
from grok_oauth_proxy.sim.flows import CodeFlow, DeviceFlow
from grok_oauth_proxy.sim.grants import Counters, Ledger
from grok_oauth_proxy.sim.reply import Header

REMEMBERED_REQUESTS = 200


@dataclass
class Stored:
    """Something a client uploaded or created: its JSON, and its bytes where it has some."""

    view: dict[str, object]
    content: bytes = b""


@dataclass
class Job:
    """A deferred result: `polls_left` more 202s, then `result`."""

    result: dict[str, object]
    polls_left: int


@dataclass
class World:
    """One simulated xAI."""

    issuer: str
    config: Config
    ledger: Ledger
    devices: DeviceFlow
    codes: CodeFlow
    token_faults: deque[str] = field(default_factory=deque)
    requests: deque[Record] = field(default_factory=lambda: deque(maxlen=REMEMBERED_REQUESTS))
    shelves: dict[str, dict[str, Stored]] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    spent_tokens: int = 0
    completions: int = 0
    _attempts: Counter[str] = field(default_factory=Counter)
    _ids: int = 0
    _first_config: dict[str, object] = field(init=False)

    def __post_init__(self) -> None:
        self._first_config = self.config.as_json()

    @classmethod
    def create(cls, issuer: str, config: Config) -> World:
        """A world without a past."""
        ledger = Ledger(issuer)
        return cls(issuer, config, ledger, DeviceFlow(ledger), CodeFlow(ledger))

    def reset(self) -> None:
        """As at the start: first configuration, no tokens, nothing stored or queued; what is open stays."""
        self.config.patch(self._first_config)
        still_open = self.counters.open_requests, self.counters.open_token_requests
        counters = Counters(open_requests=still_open[0], open_token_requests=still_open[1])
        self.ledger = Ledger(self.issuer, counters)
        self.devices, self.codes = DeviceFlow(self.ledger), CodeFlow(self.ledger)
        for remembered in (self.token_faults, self.requests, self.shelves, self.jobs, self._attempts):
            remembered.clear()
        self.spent_tokens = self.completions = 0

    @property
    def counters(self) -> Counters:
        return self.ledger.counters

    @staticmethod
    def now() -> float:
        """Unix time in seconds."""
        return time.time()

    def next_id(self, prefix: str) -> str:
        """An identifier never given before in this process."""
        self._ids += 1
        return f"{prefix}{self._ids:012x}"

    def shelf(self, name: str) -> dict[str, Stored]:
        """The stored objects of one sort, by id."""
        return self.shelves.setdefault(name, {})

    def in_force(self, directives: Directives) -> Directives:
        """`directives` with its faults, or without them once their key was seen `times` times."""
        if directives.times is None or directives.key is None:
            return directives
        self._attempts[directives.key] += 1
        used_up = self._attempts[directives.key] > directives.times
        return directives.without_faults() if used_up else directives

    def bearer_serial(self, headers: list[Header]) -> int | None:
        """Which access token a request carries, counted from 1 in order of issue; None for a foreign one."""
        access = self.ledger.access(bearer(headers) or "")
        return access.serial if access else None

    def masked(self, headers: list[Header]) -> list[list[str]]:
        """Headers as received, in order, the bearer replaced by bearer:known or bearer:unknown.

        Known means issued here, whatever its state, or one of the configured API keys.
        """
        token = bearer(headers) or ""
        known = self.ledger.access(token) is not None or token in self.config.api_keys
        mask = f"bearer:{'known' if known else 'unknown'}"
        return [
            [name.decode("latin-1"), mask if is_bearer((name, value)) else value.decode("latin-1")]
            for name, value in headers
        ]


def is_bearer(header: Header) -> bool:
    """Whether this is an Authorization header with the Bearer scheme (RFC 6750 §2.1)."""
    return header[0] == b"authorization" and header[1][:7].lower() == b"bearer "


def bearer(headers: list[Header]) -> str | None:
    """The bearer token of a request; None without one."""
    for header in headers:
        if is_bearer(header):
            return header[1][7:].strip().decode("latin-1")
    return None
