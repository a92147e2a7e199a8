"""What is in the memory of this process stays there.

A core dump would hold every token in plain text. The limit alone is not enough: where the system hands dumps
to a program (core(5): a pattern that begins with a pipe), that program gets them, and the environment,
whatever the limit is. So the process is made not dumpable too, as ssh-agent does; it also keeps programs of
the same user from attaching to it and from reading its environment in /proc.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def keep_memory_private() -> None:
    """No core dumps of this process, and none of its children's by limit."""
    with suppress(OSError, ValueError):  # a filter of system calls may forbid it, and then sets the limit too
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
