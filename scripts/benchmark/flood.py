"""A flood of connections against a real proxy, and honest clients in the midst of it: what became of each?

Everything runs on loopback and ends by itself. The flood comes from processes with addresses of their own; a
connection that the proxy closes is replaced for as long as the flood lasts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import PATIENCE, Home, Proxy, provider_store, proxy_running
from tests.sim.harness import running

from scripts.benchmark.flooder import Plan

QUESTION = json.dumps({"model": "grok-4", "stream": True, "messages": [{"role": "user", "content": "x"}]})
PACE = 0.1
"""Seconds between two pieces of a stream."""
FLOODERS = 2


@dataclass
class Honest:
    """What honest clients got. `quiet` and `flooded`: seconds that short requests took."""

    streams: int = 0
    streams_whole: int = 0
    shorts: int = 0
    shorts_whole: int = 0
    quiet: list[float] = field(default_factory=list)
    flooded: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """`flood`: connections by what became of them; memory in MiB: before, at its highest, a moment after."""

    flood: Counter[str]
    honest: Honest
    memory: tuple[float, float, float]


def measure(*, connections: int, rate: int, seconds: float, streams: int, **settings: object) -> Outcome:
    """Flood a proxy with these settings: up to `connections` open at a time, `rate` new ones a second."""
    with ExitStack() as stack:
        sim = stack.enter_context(running())
        home = Home(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        home.write_store(provider_store(sim.login()))
        proxy = stack.enter_context(proxy_running(home, sim, **settings))  # type: ignore[arg-type]
        proxy.http.close()
        honest = Honest()
        for _ in range(100):
            ask(proxy, honest, honest.quiet)
        before = resident(proxy, "VmRSS")
        # They begin before the flood does, and last longer.
        readers = open_streams(proxy, honest, streams, lasting=seconds + 2)
        share = Plan(0, connections // FLOODERS, rate // FLOODERS, seconds)
        with flooders(proxy, share) as processes:
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                ask(proxy, honest, honest.flooded)
                time.sleep(0.01)
            counts = [Counter(json.loads(process.communicate(timeout=PATIENCE)[0])) for process in processes]
        for reader in readers:
            reader.join()
        time.sleep(1.5)  # what was flooded is let go
        after = resident(proxy, "VmRSS")
        return Outcome(sum(counts, Counter()), honest, (before, resident(proxy, "VmHWM"), after))


def ask(proxy: Proxy, honest: Honest, took: list[float]) -> None:
    """A short request over a connection of its own."""
    began = time.perf_counter()
    honest.shorts += 1
    try:
        with closing(dialled(proxy)) as connection:
            connection.request("GET", "/v1/echo")
            answer = connection.getresponse()
            answer.read()
    except (OSError, http.client.HTTPException) as error:
        honest.lost.append(repr(error))
        return
    took.append(time.perf_counter() - began)
    if answer.status == http.client.OK:
        honest.shorts_whole += 1
    else:
        honest.lost.append(f"status {answer.status}")


def dialled(proxy: Proxy) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=PATIENCE)


def open_streams(proxy: Proxy, honest: Honest, count: int, *, lasting: float) -> list[threading.Thread]:
    """Streams of so many seconds, all of which have begun; who reads them to their end."""
    begun = threading.Barrier(count + 1)
    words = int(lasting / PACE)
    headers = {"content-type": "application/json", "x-sim": f"words={words};chunk-delay={PACE}"}
    counting = threading.Lock()

    def read() -> None:
        text = b""
        try:
            with closing(dialled(proxy)) as connection:
                connection.request("POST", "/v1/chat/completions", QUESTION, headers)
                answer = connection.getresponse()
                text = answer.read(1)
                begun.wait(PATIENCE)
                text += answer.read()
        except (OSError, http.client.HTTPException) as error:
            honest.lost.append(repr(error))
        with counting:
            honest.streams += 1
            # A piece for each word, and the end.
            whole = text.endswith(b"data: [DONE]\n\n") and text.count(b'"content":"') >= words
            honest.streams_whole += whole

    readers = [threading.Thread(target=read) for _ in range(count)]
    for reader in readers:
        reader.start()
    begun.wait(PATIENCE)
    return readers


@contextmanager
def flooders(proxy: Proxy, share: Plan) -> Iterator[list[subprocess.Popen[str]]]:
    port = int(proxy.url.rpartition(":")[2])
    processes: list[subprocess.Popen[str]] = []
    with ExitStack() as stack:
        for number in range(FLOODERS):
            plan = [port, share.connections, share.rate, share.seconds, f"127.0.0.{2 + number}"]
            command = [sys.executable, "-m", "scripts.benchmark.flooder", *map(str, plan)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def resident(proxy: Proxy, name: str) -> float:
    """Memory of the proxy in MiB; `name` as in proc(5)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{proxy.process.pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def table(outcome: Outcome) -> str:
    flood, honest, memory = outcome.flood, outcome.honest, outcome.memory
    quiet, flooded = statistics.median(honest.quiet), statistics.median(honest.flooded)
    rows = {
        "connections of the flood": f"{flood['opened']:,}",
        "… open at a time, at most": f"{flood['open']:,}",
        "… closed by the proxy": f"{flood['closed']:,}",
        "… answered 408 / 429 / 503": f"{flood['408']:,} / {flood['429']:,} / {flood['503']:,}",
        "… not let in at all": f"{flood['refused']:,}",
        "honest streams whole": f"{honest.streams_whole} of {honest.streams}",
        "honest short requests whole": f"{honest.shorts_whole:,} of {honest.shorts:,}",
        "their median, quiet": f"{quiet * 1000:.1f} ms",
        "their median, flooded": f"{flooded * 1000:.1f} ms, {flooded / quiet:.1f} times",
        "memory before / highest / after": " / ".join(f"{value:.0f}" for value in memory) + " MiB",
    }
    return "\n".join(f"  {name:<32}{value}" for name, value in rows.items())


def main() -> int:
    """Print a table for each of two proxies; the exit code is 1 when an honest client lost something."""
    parser = argparse.ArgumentParser(prog="scripts/flood", description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=10_000, help="open at a time (10000)")
    parser.add_argument("--rate", type=int, default=800, help="new ones a second (800)")
    parser.add_argument("--seconds", type=float, default=30, help="for each of two floods (30)")
    options = parser.parse_args()
    lost = False
    print(f"{options.connections:,} connections on {os.cpu_count()} processors")
    for title, settings in (
        ("Room for them", {}),
        ("PROXY_MAX_CONNECTIONS=2000", {"PROXY_MAX_CONNECTIONS": 2000}),
    ):
        outcome = measure(
            connections=options.connections,
            rate=options.rate,
            seconds=options.seconds,
            streams=50,
            **settings,
        )
        print(f"{title}\n{table(outcome)}\n")
        for loss, count in Counter(outcome.honest.lost).items():
            print(f"  lost {count} times: {loss}")
        lost = lost or bool(outcome.honest.lost) or outcome.honest.streams_whole < outcome.honest.streams
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
