"""The demo is the first thing a person sees: it must hold, and say so."""

from __future__ import annotations

import signal
import subprocess

import httpx
import pytest

from tests.harness import Home, Output, ending, environment, run, start


def test_demo_holds(home: Home) -> None:
    """Every step of the day holds, no file of the user is touched, and the exit code is 0."""
    ended = run(environment(home), "demo")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "7 of 7 steps held" in ended.stdout
    assert "none failed" in ended.stdout
    assert [path.name for path in home.path.iterdir()] == [".hermes"]


def test_nothing_stays_behind(home: Home, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ended by SIGTERM, the demo takes its processes and its temporary home with it."""
    folder = tmp_path_factory.mktemp("demo")
    with ending(start(environment(home, None, TMPDIR=folder), "demo", "--keep")) as process:
        out = Output(process.stdout)
        addresses = out.wait_for(r"runs at (http://\S+), the real proxy at")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130
    assert list(folder.iterdir()) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{addresses[1]}/_sim/state", trust_env=False)


def test_demo_keeps_running(home: Home) -> None:
    """With --keep both stay up and the printed address answers until Ctrl-C ends everything."""
    with ending(start(environment(home), "demo", "--keep")) as process:
        out = Output(process.stdout)
        out.wait_for(r"Both keep running until Ctrl-C")
        address = out.wait_for(r"curl (http://\S+)/health")[1]
        out.wait_for("from openai import OpenAI")
        printed = "\n".join(out.lines)
        assert "pip install openai" in printed
        curl = printed[printed.index("curl -N") : printed.index("With the OpenAI SDK")]
        shown = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=30)
        assert "data: [DONE]" in shown.stdout
        assert address.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
