"""The named keys in force, and what each has left of its limits.

Law: a file that cannot be read any more opens nothing and revokes nothing: its last good content stays in
force. Where none was ever read, but one is there, nobody comes in by a named key.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from grok_oauth_proxy.credentials.client_keys import (
    KEY_LENGTH,
    PREFIX,
    ClientKey,
    KeysFile,
    Stamp,
    digest_of,
)
from grok_oauth_proxy.errors import ProxyError, StoreProblem
from grok_oauth_proxy.events import Observer, StoreTrouble

_LOOK_EVERY: Final = 1.0
_MINUTE: Final = 60.0
_PREFIX: Final = PREFIX.encode()


class KeyLimited(ProxyError):
    """The limit of a named key is reached."""

    kind = "rate_limit_error"
    status = 429


class Guest:
    """Who has a named key. Any minute holds no more requests than allowed, whenever it begins."""

    __slots__ = ("_concurrent", "_open", "_recent", "name")

    def __init__(self, key: ClientKey) -> None:
        self._open = 0
        self._recent: deque[float] | None = None
        self.allow(key)

    def __repr__(self) -> str:
        return f"Guest({self.name}, open={self._open})"

    def allow(self, key: ClientKey) -> None:
        """The limits from now on; what was used counts on."""
        self.name = key.name
        self._concurrent = key.concurrent or math.inf
        most = key.requests_per_minute
        self._recent = None if most is None else deque(self._recent or (), most)

    def take(self, now: float) -> None:
        """Begin a request at `now`, monotonic seconds; raises `KeyLimited`."""
        if self._open >= self._concurrent:
            raise KeyLimited(
                f"The key {self.name} has {self._open} requests open, as many as it may. "
                "Wait for one to end.",
                code="key_busy",
                retry_after=1,
            )
        recent = self._recent
        if recent is not None:
            if len(recent) == recent.maxlen and (wait := recent[0] + _MINUTE - now) > 0:
                raise KeyLimited(
                    f"The key {self.name} has sent {recent.maxlen} requests within a minute, as many as it "
                    f"may. Try again in {math.ceil(wait)} s.",
                    code="key_rate_limited",
                    retry_after=math.ceil(wait),
                )
            recent.append(now)
        self._open += 1

    def forgive(self) -> None:
        """The last request was refused for another reason, and does not count for the minute."""
        if self._recent:
            self._recent.pop()

    def give_back(self) -> None:
        """The request has ended."""
        self._open -= 1


class KeyRing:
    """`monotonic` tells seconds. The file is looked at when a request comes, once a second at most."""

    def __init__(self, file: KeysFile, observer: Observer, monotonic: Callable[[], float]) -> None:
        self._file = file
        self._observer = observer
        self._monotonic = monotonic
        self._guests: dict[bytes, Guest] = {}
        self._stamp: Stamp = None
        self._unusable: str | None = None
        self._next_look = -math.inf
        self.demanded = False
        """Whoever has no key stays outside."""

    def __repr__(self) -> str:
        return f"KeyRing({sorted(guest.name for guest in self._guests.values())}, demanded={self.demanded})"

    def open(self) -> None:
        """Read the file for the first time, if there is one; raises `StoreProblem`."""
        self._next_look = self._monotonic() + _LOOK_EVERY
        self._stamp = self._file.stamp()
        if self._stamp is not None:
            self._read()

    def look(self) -> None:
        """Take over what has changed in the file."""
        now = self._monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        changed = (found := self._file.stamp()) != self._stamp
        # Neither chmod nor a shortage that passes changes the stamp, so that what may be mended by them is
        # read again; damage is mended by writing alone.
        if not changed and self._unusable in (None, "corrupt"):
            return
        self._stamp = found
        try:
            self._read()
        except StoreProblem as problem:
            self.demanded = True
            if changed or problem.code != self._unusable:
                self._observer(
                    StoreTrouble("keys_unusable", f"{problem.message} The keys known so far stay in force.")
                )
            self._unusable = problem.code
        else:
            self._unusable = None

    def find(self, offered: bytes) -> Guest | None:
        """Whose key this is."""
        if len(offered) != KEY_LENGTH or not offered.startswith(_PREFIX):
            return None  # nothing that anybody was given
        # Looked up by its digest, in a time that may depend on the digest: nobody can choose keys by their
        # SHA-256 so as to come closer to one that is there, and a digest that was learned opens nothing.
        return self._guests.get(digest_of(offered))

    def _read(self) -> None:
        if (repaired := self._file.make_private()) is not None:
            self._observer(StoreTrouble("permissions_repaired", repaired))
        guests = {}
        for key in self._file.load():
            guests[key.digest] = guest = self._guests.get(key.digest) or Guest(key)
            guest.allow(key)
        self._guests, self.demanded = guests, True
