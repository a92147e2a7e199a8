"""What is measured: requests by wrk, starts and one-shot requests by the clock."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from scripts.benchmark.stage import QUESTION, Target, tool

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Load:
    """One run of wrk: requests a second, the median latency in ms, and answers that were none."""

    rate: float
    p50_ms: float
    errors: int


def requests(target: Target, folder: Path, *, connections: int, seconds: float) -> Load:
    """As many chat requests as `connections` get through, for `seconds`."""
    script = folder / "post.lua"
    headers = '{["Content-Type"] = "application/json", ["Authorization"] = "Bearer unused"}'
    script.write_text(f"wrk.method = 'POST'; wrk.headers = {headers}; wrk.body = '{QUESTION}'\n")
    threads = min(2, connections)
    command = [tool("wrk") or "wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds:.0f}s", "--latency"]
    command += ["--timeout", "10s", "-s", str(script), f"{target.url}/v1/chat/completions"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True).stdout
    return Load(
        rate=float(_number(r"Requests/sec:\s+([\d.]+)", said)),
        p50_ms=_latency(said),
        errors=int(_number(r"Non-2xx or 3xx responses: (\d+)", said))
        + sum(int(count) for count in re.findall(r"(?:connect|read|write|timeout) (\d+)", said)),
    )


def _number(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else "0"


def _latency(text: str) -> float:
    found = re.search(r"50%\s+([\d.]+)(us|ms|s)", text)
    return float(found[1]) * _UNITS[found[2]] if found else float("nan")


def one_shot(url: str, authority: Path) -> float:
    """Milliseconds of one chat request from a process that has no connection yet."""
    command = [
        tool("curl") or "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{time_total}",
        "--cacert",
        str(authority),
    ]
    command += ["-H", "content-type: application/json", "-d", QUESTION, f"{url}/v1/chat/completions"]
    return (
        float(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout) * 1000
    )


def wait_until_healthy(url: str) -> None:
    while httpx.get(f"{url}/health", trust_env=False).status_code != httpx.codes.OK:
        time.sleep(0.005)


def seconds_of(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    return time.monotonic() - began
