"""The demo is the first thing a person sees: it must hold, and say so."""

from __future__ import annotations

import signal

from tests.harness import Home, Output, environment, run, start


def test_demo_holds(home: Home) -> None:
    """Every step of the day holds, no file of the user is touched, and the exit code is 0."""
    ended = run(environment(home), "demo")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "7 of 7 steps held" in ended.stdout
    assert "none failed" in ended.stdout
    assert [path.name for path in home.path.iterdir()] == [".hermes"]


def test_demo_keeps_running(home: Home) -> None:
    """With --keep both stay up and the printed address answers until Ctrl-C ends everything."""
    with start(environment(home), "demo", "--keep") as process:
        out = Output(process.stdout)
        out.wait_for(r"Both keep running until Ctrl-C")
        address = out.wait_for(r"curl (http://\S+)/health")[1]
        out.wait_for("from openai import OpenAI")
        assert address.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
