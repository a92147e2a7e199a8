"""The book of a process's connections: how many there are, which of them wait, for what, and since when.

Law: a connection that waits is closed to make room, the longest first, so that a flood of connections that
ask for nothing makes room for itself. One with a request in flight is turned out only if its client dawdles,
and nothing else is to be had. What waits stands in lines, each of one patience, in the order of coming: only
the front of a line is looked at, and one timer serves them all.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from grok_oauth_proxy.errors import ProxyError

_KEEP_ALIVE: Final = 75.0
_LEAVING: Final = 30.0
_REFUSED: Final = 5.0
_REFUSED_AT_ONCE: Final = 64
"""Connections beyond the limit that are given an answer at a time; the oldest of more is just closed."""
_LOOKED_AT: Final = 16
"""How many are looked at, one after the other, for one that can be closed or dawdles."""
_DAWDLING: Final = 1.0
"""Seconds for the next piece of a body (see `caller`), after which others need not wait for it."""
_AT_ONCE: Final = 64
"""How many run out of time in one step of the event loop, so that open answers do not wait for all."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds, bytes and connections; `per_client` and `body_size` of 0 are none.

    `head`: from its first byte to its end. `body_stall`: without progress of a body that is waited for, and
    without any of an answer, after which its client dawdles.
    """

    connections: int = 10_000
    per_client: int = 0
    head: float = 10.0
    body_stall: float = 60.0
    body_size: int = 1024**3


class NoRoom(ProxyError):
    """All connections are taken, and each is at work."""

    status = 503


class NoRoomForClient(ProxyError):
    """All connections that one client may have are taken, and each is at work."""

    kind = "rate_limit_error"
    status = 429


class Member(Protocol):
    """A connection. `line`, `party` and `counted` are notes of the `Crowd`, and nobody else's."""

    line: Line | None
    party: Party | None
    counted: bool

    @property
    def removable(self) -> bool:
        """Nothing has come that is still to be read, and nothing is still to be sent."""

    @property
    def dawdles(self) -> bool:
        """Its request is in flight, and waits for a client that sends or takes next to nothing."""

    def make_way(self, error: ProxyError) -> None:
        """End its request, which is in flight, with this error: its place is wanted."""

    def overdue(self, line: Line) -> None:
        """It has stood in `line` for too long, and does so no more."""

    def remove(self) -> None:
        """Close it: its place is wanted."""


class Line:
    """What waits for one thing, and since when; `patience`: for how many seconds at most.

    `grace`: seconds after which it dawdles, where a request is in flight; None: there is none.
    """

    def __init__(self, patience: float, *, grace: float | None = None) -> None:
        self.patience = patience
        self.grace = grace
        self.since: OrderedDict[Member, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"Line({len(self.since)}, patience={self.patience})"


class Party:
    """The connections of one client."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.count = 0
        self.waiting: OrderedDict[Member, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"Party({self.client}, {self.count}, waiting={len(self.waiting)})"


class Crowd:
    """All connections of a process, whose event loop runs when the first comes."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.idle = Line(_KEEP_ALIVE)
        """No byte of a request has come."""
        self.heads = Line(bounds.head)
        """The head of a request has begun, or a TLS handshake is made."""
        self.leaving = Line(_LEAVING)
        """The last answer was given; it goes out, and what still comes is thrown away."""
        self.refused = Line(_REFUSED)
        """There was no room for it, which it is told."""
        self.bodies = Line(bounds.body_stall, grace=_DAWDLING)
        """More of a body is waited for."""
        self.takers = Line(math.inf, grace=bounds.body_stall)
        """An answer is not taken. It may stay so: somebody may be reading it."""
        self._lines = (self.idle, self.heads, self.leaving, self.refused, self.bodies, self.takers)
        self._count = 0
        self._parties: dict[str, Party] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    def __repr__(self) -> str:
        return f"Crowd({self._count}, idle={self.idle}, heads={self.heads}, bodies={self.bodies})"

    # Coming and going.

    def enter(self, member: Member, client: str | None) -> ProxyError | None:
        """Count a new connection, for which another may be closed; or why there is no room for it.

        `client`: who has it, None where that is not told apart.
        """
        self._loop = asyncio.get_running_loop()
        party = None
        if client is not None and self.bounds.per_client:
            party = self._parties.get(client) or Party(client)
            if party.count >= self.bounds.per_client and not self._make_room_of(party):
                return self._refuse(
                    member, NoRoomForClient(_ALL_OF_YOURS, code="too_many_connections", retry_after=1)
                )
        if self._count >= self.bounds.connections and not self._make_room():
            return self._refuse(member, NoRoom(_ALL, code="too_many_connections", retry_after=1))
        self._count += 1
        member.counted = True
        if party is not None:
            party.count += 1
            member.party = self._parties[party.client] = party
        return None

    def leave(self, member: Member) -> None:
        """It is closed, or as good as that."""
        self.proceed(member)
        if not member.counted:
            return
        member.counted = False
        self._count -= 1
        party, member.party = member.party, None
        if party is not None:
            party.count -= 1
            if not party.count:
                del self._parties[party.client]

    def _refuse(self, member: Member, why: ProxyError) -> ProxyError:
        if len(self.refused.since) >= _REFUSED_AT_ONCE:
            self._remove(next(iter(self.refused.since)))
        self.stand(member, self.refused)
        return why

    def _make_room(self) -> bool:
        """Close the connection that has waited longest; False when none can be closed."""
        for _ in range(_LOOKED_AT):
            fronts = [
                (*next(iter(line.since.items())), line)
                for line in (self.idle, self.heads, self.leaving)
                if line.since
            ]
            if not fronts:
                return self._turn_out()
            member, _, line = min(fronts, key=lambda front: front[1])
            if member.removable:
                self._remove(member)
                return True
            line.since.move_to_end(member)
        return self._turn_out()

    def _turn_out(self) -> bool:
        """Tell one that dawdles that it has to go; False when none does."""
        for line in (self.bodies, self.takers):
            for member in [*islice(line.since, _LOOKED_AT)]:
                if member.dawdles:
                    self.leave(member)
                    member.make_way(self._refuse(member, NoRoom(_TOO_SLOW, code="overloaded", retry_after=1)))
                    return True
        return False

    def _make_room_of(self, party: Party) -> bool:
        for _ in range(min(_LOOKED_AT, len(party.waiting))):
            member = next(iter(party.waiting))
            if member.removable:
                self._remove(member)
                return True
            party.waiting.move_to_end(member)
        return False

    def _remove(self, member: Member) -> None:
        self.leave(member)
        member.remove()

    # Waiting.

    def stand(self, member: Member, line: Line) -> None:
        """From now on it waits, at the end of `line`."""
        if member.line is not None:
            del member.line.since[member]
        now = self._loop.time()
        line.since[member] = now
        member.line = line
        if member.party is not None:
            member.party.waiting.pop(member, None)
            if line.grace is None:
                member.party.waiting[member] = None
        if now + line.patience < self._due:
            self._look_at(now + line.patience)

    def is_past_grace(self, member: Member) -> bool:
        """Its request is in flight, and has stood in its line for too long to be let alone."""
        line = member.line
        if line is None or line.grace is None:
            return False
        return self._loop.time() >= line.since[member] + line.grace

    def proceed(self, member: Member) -> None:
        """It waits no more."""
        if member.line is not None:
            del member.line.since[member]
            member.line = None
            if member.party is not None:
                member.party.waiting.pop(member, None)

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = when, self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Tell those whose time is over."""
        self._due, self._timer = math.inf, None
        now, left, due = self._loop.time(), _AT_ONCE, math.inf
        for line in self._lines:
            while line.since:
                member, since = next(iter(line.since.items()))
                if since + line.patience > now or not left:
                    due = min(due, max(since + line.patience, now))
                    break
                left -= 1
                self.proceed(member)
                member.overdue(line)
        if due < self._due:
            self._look_at(due)


_ALL: Final = (
    "The proxy has as many connections as it may have, and all are at work. Try again in a moment, or raise "
    "PROXY_MAX_CONNECTIONS."
)
_TOO_SLOW: Final = (
    "The proxy has as many connections as it may have, and this request came so slowly that another took its "
    "place. Send it again, or raise PROXY_MAX_CONNECTIONS."
)
_ALL_OF_YOURS: Final = (
    "You have as many connections as one client may have, and all are at work. Use them again, or raise "
    "PROXY_MAX_CONNECTIONS_PER_CLIENT."
)
