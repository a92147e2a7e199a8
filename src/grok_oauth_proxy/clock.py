"""Time, as one injected value: wall seconds for expiry, monotonic seconds for waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """`wall` gives seconds since the epoch, `monotonic` seconds that stand still during a system suspend."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
