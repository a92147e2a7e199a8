"""What our source may not hold, whatever a comment beside it says: ways to run what somebody else wrote."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import modules

ROOT = Path(__file__).parent.parent
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "yaml", "xmlrpc", "telnetlib", "ftplib"}
"""They make objects of bytes by running what the bytes say, or speak without TLS."""
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "getoutput", "getstatusoutput"}
SHELLS = {"create_subprocess_shell"}

DANGEROUS = """
import marshal, os, pickle, subprocess, yaml
def run(data: bytes) -> None:
    pickle.loads(data)
    marshal.loads(data)
    yaml.load(data)
    eval(data)
    exec(data)
    os.system(data.decode())
    subprocess.run(data.decode(), shell=True, check=False)
"""


def dangers(tree: ast.Module) -> list[str]:
    """What a module imports, calls or asks for that runs code or a shell, with its line."""
    return [
        f"{name} at {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
        for name in _names(node)
        if name in MODULES | CALLS | SHELLS | {"shell"}
    ]


def _names(node: ast.Import | ast.ImportFrom | ast.Call) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").partition(".")[0], *(alias.name for alias in node.names)]
    names = ["shell"] * any(word.arg == "shell" for word in node.keywords)
    called = node.func
    if isinstance(called, ast.Name):
        names.append(called.id)
    elif isinstance(called, ast.Attribute) and _module(called) != "re":  # re.compile
        names.append(called.attr)
    return names


def _module(attribute: ast.Attribute) -> str:
    return attribute.value.id if isinstance(attribute.value, ast.Name) else ""


def test_nothing_runs_what_others_wrote() -> None:
    """No module unpickles, evaluates or starts a shell."""
    found = {name: bad for name, tree in modules().items() if (bad := dangers(tree))}
    assert found == {}


def test_the_search_itself() -> None:
    """Each of them would be found."""
    assert len(dangers(ast.parse(DANGEROUS))) == 7


@pytest.mark.parametrize("place", ["src/grok_oauth_proxy/new.py", "scripts/new.py", "tests/new.py"])
def test_ruff_says_so_too(place: str) -> None:
    """As the project is configured, scripts/check refuses them everywhere."""
    command = [str(Path(sys.executable).with_name("ruff")), "check", "--stdin-filename", place]
    told = subprocess.run(
        [*command, "--output-format=json", "-"],
        cwd=ROOT,
        input=DANGEROUS,
        capture_output=True,
        text=True,
        check=False,
    )
    codes = {finding["code"] for finding in json.loads(told.stdout)}
    assert {"S301", "S302", "S506", "S307", "S102", "S605", "S602"} <= codes
