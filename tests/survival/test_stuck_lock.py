"""A lock whose holder is stuck."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from tests.harness import Home, ending, proxy_running
from tests.sim.harness import Sim
from tests.survival.scene import REFRESHED, assert_intact, assert_served, write_due_login

STUCK = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_lock_held_by_a_stuck_process(home: Home, own_sim: Sim) -> None:
    """A lock that its stopped holder never gives back is told after 30 s; meanwhile valid tokens serve."""
    write_due_login(home, own_sim)
    command = [sys.executable, "-c", STUCK, str(home.auth.with_name("auth.lock"))]
    with ending(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        with proxy_running(home, own_sim) as proxy:
            deadline = time.monotonic() + 45
            while not any("[lock_busy]" in line for line in proxy.err.lines):
                assert_served(proxy)
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert_served(proxy)
            problem = proxy.health()["problem"]
            assert (proxy.health()["status"], problem["code"]) == ("degraded", "lock_busy")
            assert (
                f"Another program has held {home.auth.with_name('auth.lock')} for 30 s" in problem["message"]
            )
            assert own_sim.counters()["token_requests"] == 0
            holder.send_signal(signal.SIGCONT)
            holder.stdin.write("\n")
            holder.stdin.flush()
            proxy.err.wait_for(REFRESHED)
            assert_served(proxy)
            assert_intact(home, own_sim)
