"""What the kernel tells of the processes of this service, under the names that Prometheus has for it.

prometheus-client's own collector knows one process, and needs the part of /proc that `ProcSubset=pid` hides.
Where there is no /proc, nothing is told.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_OWN_TIMES: Final = slice(11, 13)
_ALL_TIMES: Final = slice(11, 15)
_PAGES: Final = 21
"""Places in /proc/PID/stat behind the name, proc(5): utime, stime, cutime, cstime; rss."""


class Processes(Collector):
    """This process, or with `workers` its parent and all that this has started, added up."""

    def __init__(self, *, workers: bool) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        """See prometheus-client."""
        first = os.getppid() if self._workers else os.getpid()
        try:
            seconds, memory, files = _facts(first, _ALL_TIMES)
            others = _children(first) if self._workers else []
        except OSError:
            return
        count = 1
        for pid in others:
            with suppress(OSError):  # it has ended meanwhile
                more = _facts(pid, _OWN_TIMES)
                seconds, memory, files = seconds + more[0], memory + more[1], files + more[2]
                count += 1
        yield CounterMetricFamily("process_cpu_seconds", "User and system time spent", value=seconds)
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory", value=memory)
        yield GaugeMetricFamily("process_open_fds", "Open file descriptors", value=files)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * count
        yield GaugeMetricFamily("process_max_fds", "File descriptors that may be open", value=limit)


def _facts(pid: int, times: slice) -> tuple[float, int, int]:
    """Seconds of processor time, bytes of memory, open files; raises `OSError`."""
    folder = Path("/proc", str(pid))
    told = (folder / "stat").read_bytes().rpartition(b")")[2].split()
    seconds = sum(map(int, told[times])) / os.sysconf("SC_CLK_TCK")
    files = sum(1 for _ in (folder / "fd").iterdir())
    return seconds, int(told[_PAGES]) * resource.getpagesize(), files


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
