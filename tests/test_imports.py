"""The shape of the source tree: who may import whom, who may read the environment, how long a room may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

import grok_oauth_proxy

ROOT = Path(grok_oauth_proxy.__file__).parent
PACKAGE = "grok_oauth_proxy"

LEVELS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "",
            "settings",
            "address",
            "settings_file",
            "events",
            "errors",
            "clock",
            "origins",
            "egress",
            "asgi",
            "bugs",
            "secrecy",
        }
    ),
    frozenset({"credentials", "moving"}),
    frozenset({"tasks", "proxy", "observe", "control_plane"}),
    frozenset({"web", "http1", "safe_start"}),
    frozenset({"server", "app", "listening", "certificate", "systemd"}),
    frozenset({"workers"}),
    frozenset({"daemon"}),
    frozenset({"cli", "__main__"}),
)
"""From the ground upward. A room imports its own modules and what lies below; the ground imports itself.

The empty name is the package's own `__init__`.
"""

ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv", "expandvars"})
# The demo starts the proxy with an environment of its own and hands it PATH and the language of this one.
# A worker gets the environment of the process that starts it, and one variable more.
# What the shell says of ssh and screens is no setting of ours.
# What a service manager hands to a service is no setting either, nor is who called sudo.
# moving/ runs without an install, and so without the library that settings.py needs.
ENVIRONMENT_READERS = frozenset(
    {
        "settings",
        "__main__",  # an empty HOME
        "cli.demo_stage",
        "cli.service.person",
        "cli.surroundings",
        "workers",
        "systemd",
        "moving.surroundings",
    }
)
PROXY_ENVIRONMENT = frozenset({"getproxies", "getproxies_environment", "proxy_bypass_environment"})

Edges = Mapping[str, frozenset[str]]


@cache
def modules() -> dict[str, ast.Module]:
    """Every module by its name below the package, parsed."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(name: str, tree: ast.Module, known: Iterable[str]) -> frozenset[str]:
    """The package's modules that `tree` imports anywhere, inside functions too."""
    known = frozenset(known)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: write the whole name of the module at line {node.lineno}"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            head, _, rest = target.partition(".")
            if head == PACKAGE:
                # `from package.module import thing` names a thing; the module is what stands before it.
                found.add(rest if rest in known else rest.rpartition(".")[0])
    return frozenset(found - {name})


@cache
def edges() -> Edges:
    return {name: imported(name, tree, modules()) for name, tree in modules().items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def level(module: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if room(module) in rooms)


def wrong_arrows(graph: Edges) -> list[str]:
    """The imports that do not point downward, the simulator's left out."""
    return [
        f"{module or '__init__'} -> {target or '__init__'}"
        for module, targets in graph.items()
        for target in sorted(targets)
        if "sim" not in (room(module), room(target))
        and room(module) != room(target)
        and not (level(target) < level(module) or level(module) == level(target) in (0, len(LEVELS) - 1))
    ]


def circle(graph: Edges) -> list[str]:
    """The modules of one circle, in order; empty when there is none."""
    finished: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in finished:
            return []
        for target in sorted(graph.get(module, ())):
            if found := visit(target, [*trail, module]):
                return found
        finished.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


def attributes(tree: ast.Module) -> set[str]:
    """Every name that is read, imported or looked up in an object."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found


def test_imports_point_downward() -> None:
    """No module imports what lies above it, and tasks, proxy and observe know nothing of each other."""
    assert wrong_arrows(edges()) == []


def test_no_circles() -> None:
    """No module imports itself by way of others."""
    assert circle(edges()) == []


def test_every_module_has_a_level() -> None:
    """A new room is given its place in the order before it is moved into."""
    rooms = {room(module) for module in modules()} - {"sim"}
    assert rooms == frozenset().union(*LEVELS)


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("web.pages", "observe.health", True),
        ("proxy.handler", "credentials.token", True),
        ("egress", "errors", True),
        ("proxy.handler", "observe.metrics", False),
        ("tasks.watcher", "proxy.retry", False),
        ("credentials.manager", "proxy.retry", False),
        ("settings", "credentials.token", False),
        ("web.pages", "app", False),
        ("app", "server", False),
        ("app", "cli", False),
    ],
)
def test_the_order_itself(module: str, target: str, allowed: bool) -> None:
    """The check tells an arrow that points down from one that does not."""
    assert (wrong_arrows({module: frozenset({target})}) == []) is allowed


def test_the_circle_check_itself() -> None:
    """A circle of three is found, and a fork that meets again is not taken for one."""
    ring = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"a"})}
    fork = {"a": frozenset({"b", "c"}), "b": frozenset({"d"}), "c": frozenset({"d"}), "d": frozenset[str]()}
    assert circle(ring) == ["a", "b", "c", "a"]
    assert circle(fork) == []


def test_the_simulator_stands_alone() -> None:
    """The simulator imports nothing of the rest, so that client and fake cannot share a mistake."""
    leaks = {
        module: sorted(others)
        for module, targets in edges().items()
        if room(module) == "sim" and (others := {target for target in targets if room(target) != "sim"})
    }
    assert leaks == {}


def test_only_the_demo_knows_the_simulator() -> None:
    """Nothing that serves a user imports the simulator."""
    users = {
        module
        for module, targets in edges().items()
        if room(module) != "sim" and any(room(target) == "sim" for target in targets)
    }
    assert users <= {"cli.demo", "cli.demo_stage"}


def test_one_reader_of_the_environment() -> None:
    """Only settings.py reads the environment, but for the demo, which passes some of it on."""
    readers = {module for module, tree in modules().items() if attributes(tree) & ENVIRONMENT}
    assert "settings" in readers
    assert readers <= ENVIRONMENT_READERS


def test_one_reader_of_the_proxy_variables() -> None:
    """Only egress.py asks the standard library what HTTPS_PROXY, ALL_PROXY and NO_PROXY say."""
    readers = {module for module, tree in modules().items() if attributes(tree) & PROXY_ENVIRONMENT}
    assert readers == {"egress"}


def test_moving_needs_nothing_but_python() -> None:
    """What runs without an install imports the standard library and itself, and nothing else."""
    strangers = {
        name
        for module, tree in modules().items()
        if room(module) in ("moving", "address", "settings_file")
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not f"{name}.".startswith(
            (f"{PACKAGE}.moving.", f"{PACKAGE}.address.", f"{PACKAGE}.settings_file.")
        )
    }
    assert strangers == set()


def test_what_watches_over_workers_is_small() -> None:
    """The application and its libraries are loaded by who serves: not to refuse a start, not to watch."""
    code = "import sys, grok_oauth_proxy.daemon; print({'fastapi', 'httpx', sys.argv[1]} & set(sys.modules))"
    command = [sys.executable, "-c", code, f"{PACKAGE}.app"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_what_serves_does_not_draw() -> None:
    """The application comes without Rich and Pygments, which httpx loads for a command line of its own."""
    code = (
        "import contextlib, sys; from grok_oauth_proxy.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--version'])\n"
        f"import {PACKAGE}.app; print({{'httpx', 'pygments', 'rich'}} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "{'httpx'}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_short_rooms(path: Path) -> None:
    """No module has 400 lines or more, and no function 60."""
    text = path.read_text(encoding="utf-8")
    long = {
        node.name: length
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) >= 60
    }
    assert long == {}
    assert len(text.splitlines()) < 400
