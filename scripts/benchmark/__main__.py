"""The run: every measure side by side, in alternating rounds, medians; one table and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.benchmark import load
from scripts.benchmark.stage import TOOLS, Stage, Target, free_port, tool

console = Console(width=110)
Numbers = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure the proxy beside others.")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the numbers go")
    arguments = parser.parse_args()
    missing = [package for name, package in TOOLS.items() if tool(name) is None and name != "caddy"]
    if missing:
        raise SystemExit(
            f"Missing: {', '.join(missing)}. Install them (Debian: apt install {' '.join(missing)})."
        )
    rounds, seconds = (1, 1.0) if arguments.quick else (3, 3.0)
    with (
        tempfile.TemporaryDirectory(prefix="grok-oauth-proxy-bench-") as folder,
        Stage(Path(folder)) as stage,
    ):
        numbers = run(stage, rounds, seconds)
    arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")
    show(numbers)


def run(stage: Stage, rounds: int, seconds: float) -> Numbers:
    upstream, issuer = stage.upstream(), stage.issuer()
    targets = [
        upstream,
        stage.nginx(upstream.url),
        stage.ours(upstream.url, issuer),
        stage.obvious(upstream.url),
    ]
    if tool("caddy"):
        targets.insert(2, stage.caddy(upstream.url))
    ours = next(target for target in targets if target.name == "ours")
    numbers: Numbers = {"machine": machine(), "not run": [] if tool("caddy") else ["caddy: not installed"]}
    probe = stage.probe(upstream.url)
    several = stage.ours(upstream.url, issuer, "ours, a worker a core", workers=os.cpu_count() or 1)
    numbers["resident MB, idle"] = {"ours": ours.resident_bytes() / 1e6}
    for name, connections in (("64 connections", 64), ("1 connection", 1)):
        step(f"requests over {name}")
        numbers[name] = alternating(
            [*targets, several, probe],
            rounds,
            lambda target, c=connections: requests(target, stage, c, seconds),  # type: ignore[misc]  # bound now
        )
    step("requests as connections grow")
    numbers["growth"] = {count: steady(ours, stage, count, seconds) for count in (1, 8, 64, 256, 1024)}
    step("streams")
    source = streaming(stage)
    numbers["streams"] = streams(stage, source, issuer, rounds, seconds * 2)
    numbers["KB a stream"] = memory(stage, source, issuer, rounds)
    step("a large upload and a large download")
    numbers["bulk, MB grown"] = bulk(stage, issuer, 1 << (26 if rounds == 1 else 30))
    step("one-shot requests over 40 ms")
    numbers["one shot, ms"] = one_shots(stage, upstream, issuer)
    step("starts")
    numbers["start, s"] = starts(stage, upstream, issuer, rounds)
    return numbers


def alternating(
    targets: list[Target], rounds: int, measure: Callable[[Target], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """The median of each number over the rounds; in each round every target has its turn."""
    taken: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            taken[target.name].append(measure(target))
    return {
        name: {key: median(one[key] for one in several) for key in several[0]}
        for name, several in taken.items()
    }


def steady(target: Target, stage: Stage, connections: int, seconds: float) -> dict[str, float]:
    """A run after one that is not counted, which shakes hands with the upstream for every connection."""
    load.requests(target, stage.folder, connections=connections, seconds=seconds)
    return requests(target, stage, connections, seconds)


def requests(target: Target, stage: Stage, connections: int, seconds: float) -> dict[str, float]:
    before = target.cpu_seconds()
    taken = load.requests(target, stage.folder, connections=connections, seconds=seconds)
    used = (target.cpu_seconds() - before) * 1e6 / max(1.0, taken.rate * seconds)
    return {"rate": taken.rate, "p50_ms": taken.p50_ms, "errors": taken.errors, "cpu_us": used}


def streaming(stage: Stage) -> Target:
    """The API whose answers are streams."""
    port = free_port()
    command = [sys.executable, "-m", "scripts.benchmark.streams", "source", str(port), str(stage.certificate)]
    return stage.start("source", command, f"https://localhost:{port}", PYTHONPATH=str(Path.cwd()))


def streams(
    stage: Stage, source: Target, issuer: str, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    targets = [
        Target("upstream", source.url),
        stage.ours(source.url, issuer, "ours-streams"),
        stage.obvious(source.url),
    ]
    if tool("caddy"):
        targets.append(stage.caddy(source.url))
    named = [Target(target.name.removesuffix("-streams"), target.url, target.process) for target in targets]
    return alternating(named, rounds, lambda target: read_streams(stage, target, seconds))


def read_streams(stage: Stage, target: Target, seconds: float) -> dict[str, float]:
    """CPU microseconds a chunk, and how late chunks come, with 300 streams."""
    command = [sys.executable, "-m", "scripts.benchmark.streams", "read", target.url, "300", str(seconds)]
    command.append(stage.trust["SSL_CERT_FILE"])
    idle = target.resident_bytes()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as reader:
        lines = iter(reader.stdout or ())
        next(lines)
        before, grown = target.cpu_seconds(), target.resident_bytes() - idle
        said: dict[str, float] = json.loads(next(lines))
        used = target.cpu_seconds() - before
    said["cpu_us"] = used * 1e6 / max(1, said["chunks"])
    said["kb_a_stream"] = grown / 300 / 1e3
    return said


def memory(stage: Stage, source: Target, issuer: str, rounds: int) -> float:
    """By how many KB each of the first 300 streams of a process makes it grow."""
    fresh = [stage.ours(source.url, issuer, f"ours-memory-{number}") for number in range(rounds)]
    return median(read_streams(stage, ours, 1)["kb_a_stream"] for ours in fresh)


def bulk(stage: Stage, issuer: str, size: int) -> dict[str, float]:
    """By how many MB our process grows at most while `size` bytes go up, and while they come down."""
    port = free_port()
    command = [sys.executable, "-m", "scripts.benchmark.bulk", str(port), str(stage.certificate), str(size)]
    far = stage.start("bulk", command, f"https://localhost:{port}", PYTHONPATH=str(Path.cwd()))
    ours = stage.ours(far.url, issuer, "ours-bulk")
    file = stage.folder / "bulk"
    with file.open("wb") as sparse:
        sparse.truncate(size)
    curl = [tool("curl") or "curl", "-sf", "-o", os.devnull, f"{ours.url}/v1/files"]
    grown = {}
    for name, arguments in (("upload", ["-X", "POST", "-T", str(file)]), ("download", [])):
        idle = highest = ours.resident_bytes()
        with subprocess.Popen([*curl, *arguments]) as transfer:
            while transfer.poll() is None:
                highest = max(highest, ours.resident_bytes())
                time.sleep(0.02)
        if transfer.returncode:
            raise SystemExit(f"The {name} failed: curl ended with {transfer.returncode}.")
        grown[name] = (highest - idle) / 1e6
    return grown


def one_shots(stage: Stage, upstream: Target, issuer: str) -> dict[str, float]:
    port = free_port()
    command = [sys.executable, "-m", "scripts.benchmark.relay", str(port), upstream.url.rsplit(":", 1)[1]]
    far = stage.start("relay", command, f"https://localhost:{port}", PYTHONPATH=str(Path.cwd()))
    ours = stage.ours(far.url, issuer, "ours-far")
    authority = Path(stage.trust["SSL_CERT_FILE"])
    taken: dict[str, list[float]] = {"direct": [], "ours": []}
    for _ in range(10):
        taken["direct"].append(load.one_shot(far.url, authority))
        taken["ours"].append(load.one_shot(ours.url, authority))
    return {name: median(values) for name, values in taken.items()}


def starts(stage: Stage, upstream: Target, issuer: str, rounds: int) -> dict[str, float]:
    imports = [sys.executable, "-c", "import fastapi, uvicorn"]
    taken: dict[str, list[float]] = {"imports": [], "ours": []}
    for number in range(rounds * 2):
        taken["imports"].append(load.seconds_of(imports))
        began = time.monotonic()
        load.wait_until_healthy(stage.ours(upstream.url, issuer, f"ours-start-{number}").url)
        taken["ours"].append(time.monotonic() - began)
    return {name: median(values) for name, values in taken.items()}


def machine() -> dict[str, str]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "python": f"{platform.python_version()} ({platform.python_compiler()})",
        "uvloop": metadata.version("uvloop"),
        "nginx": version("nginx", "-v"),
        "caddy": version("caddy", "version"),
        "wrk": version("wrk", "-v"),
    }


def version(name: str, argument: str) -> str:
    """The first line of what a tool says about itself."""
    if (path := tool(name)) is None:
        return "not installed"
    said = subprocess.run([path, argument], capture_output=True, text=True, check=False, timeout=20)
    return (said.stdout + said.stderr).partition("\n")[0].strip()


def caddy_rate(many: Numbers) -> float:
    return float(many["caddy"]["rate"]) if "caddy" in many else 0.0


def step(text: str) -> None:
    console.print(f"[dim]{text} …[/dim]")


def show(numbers: Numbers) -> None:
    table = Table("measure", "ours", "against", "ratio", "must")
    for row in rows(numbers):
        table.add_row(*row)
    console.print(table)


def rows(numbers: Numbers) -> list[tuple[str, str, str, str, str]]:
    many, one, flows = numbers["64 connections"], numbers["1 connection"], numbers["streams"]
    taken: list[tuple[str, str, str, str, str]] = []

    def compare(measure: str, mine: float, name: str, other: float, must: str, unit: str = "") -> None:
        if not other:
            taken.append((measure, f"{mine:,.3g}{unit}", f"{name}: not run", "", must))
            return
        taken.append(
            (measure, f"{mine:,.3g}{unit}", f"{name} {other:,.3g}{unit}", f"{mine / other:.2f}", must)
        )

    for name, must in (("caddy", "≥ 1.0"), ("nginx", "≥ 0.45"), ("obvious", "≥ 20"), ("upstream", "")):
        if name in many:
            compare("requests/s, 64 connections", many["ours"]["rate"], name, many[name]["rate"], must)
    workers = "ours, a worker a core"
    compare("the same, PROXY_WORKERS = cores", many[workers]["rate"], "caddy", caddy_rate(many), "")
    compare("the same, a bare probe", many["a bare probe"]["rate"], "nginx", many["nginx"]["rate"], "")
    if "caddy" in many:
        compare("CPU a request", many["ours"]["cpu_us"], "caddy", many["caddy"]["cpu_us"], "", " µs")
        compare("requests/s, 1 connection", one["ours"]["rate"], "caddy", one["caddy"]["rate"], "")
    added = one["ours"]["p50_ms"] - one["upstream"]["p50_ms"]
    taken.append(("p50 added over direct, 1 connection", f"{added:.3f} ms", "", "", "≤ 0.30 ms"))
    for name, must in (("caddy", "≤ 1.3"), ("obvious", "≤ 0.40")):
        if name in flows:
            compare("CPU a streamed chunk", flows["ours"]["cpu_us"], name, flows[name]["cpu_us"], must, " µs")
    late = flows["ours"]["p99_ms"] - flows["upstream"]["p99_ms"]
    taken.append(("chunks delayed, p99", f"{late:.2f} ms", "", "", "≤ 10 ms"))
    shots, begun = numbers["one shot, ms"], numbers["start, s"]
    compare("one-shot request over 40 ms", shots["ours"], "direct", shots["direct"], "≤ 0.7", " ms")
    compare("start", begun["ours"], "imports", begun["imports"], "≤ 2", " s")
    taken.append(("resident, idle", f"{numbers['resident MB, idle']['ours']:.0f} MB", "", "", "≤ 75 MB"))
    taken.append(("resident, an open stream", f"{numbers['KB a stream']:.0f} KB", "", "", "≤ 40 KB"))
    for name, megabytes in numbers["bulk, MB grown"].items():
        taken.append((f"resident, {name}", f"+{megabytes:.0f} MB", "", "", "≤ +20 MB"))
    growth = {count: result["rate"] for count, result in numbers["growth"].items()}
    lowest = min(growth[count] for count in growth if int(count) >= 8)
    compare("requests/s at 1 to 1024 connections", lowest, "peak", max(growth.values()), "≥ 0.6")
    errors = sum(result["errors"] for result in numbers["growth"].values())
    taken.append(("errors at 1 to 1024 connections", f"{errors:.0f}", "", "", "0"))
    return taken


if __name__ == "__main__":
    main()
