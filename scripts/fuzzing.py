"""`scripts/fuzz`: three attacks by chance, one after the other, each for its share of the time.

The front door gets a mutated corpus over real sockets (`tests/http1/hostile.py`); the keeper of the login and
the pool of connections are the state machines of their tests, with many more examples. A run is repeated by
its seed.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from tests.credentials.test_keeping import Keeping
from tests.harness import Home, Proxy, provider_store, proxy_running
from tests.http1.hostile import LAST, Attack, corpus, in_pieces, mutated
from tests.proxy.test_pool import Pool
from tests.sim.harness import running

BATCH = 500
EXAMPLES = 100
STEPS = 40
SHARES = {"front door": 0.6, "keeper": 0.25, "pool": 0.15}
UNTIL_IDLE = 70.0
"""Seconds after which no idle connection is kept any more."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Attack by chance, for a bounded time.")
    parser.add_argument("--seconds", type=float, default=120.0, help="for all of it (120)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="repeats a run")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    breaches = front_door(arguments.seed, arguments.seconds * SHARES["front door"])
    machine("keeper", Keeping, arguments.seed, arguments.seconds * SHARES["keeper"])
    machine("pool", Pool, arguments.seed, arguments.seconds * SHARES["pool"])
    sys.exit(1 if breaches else 0)


def front_door(number: int, seconds: float) -> list[str]:
    """What did not hold."""
    chance, entries = random.Random(number), list(corpus().values())
    with tempfile.TemporaryDirectory(prefix="grok-oauth-proxy-fuzz-") as folder, running() as sim:
        sim.patch(chunk_delay=0)
        home = Home(Path(folder))
        tokens = sim.login()
        home.write_store(provider_store(tokens))
        # The simulator has nothing to say to a handshake with a line of more than 8 KiB.
        with proxy_running(home, sim, UPSTREAM_READ_TIMEOUT=5) as proxy:
            attack = Attack(proxy, sim, (tokens["access_token"], tokens["refresh_token"]))
            attack.run([[data + LAST] for data in entries])
            before, ends_at = descriptors(proxy), time.monotonic() + seconds
            while time.monotonic() < ends_at and not attack.breaches:
                made = (mutated(chance.choice(entries), entries, chance) for _ in range(BATCH))
                attack.run([in_pieces(data + LAST, chance) for data in made])
            attack.check_afterwards()
            if (after := descriptors_when_idle(proxy, before)) > before:
                attack.breaches.append(f"{after} descriptors are open; it were {before}")
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(attack.answers.items()))
    told = f"{attack.connections} connections; answers: {answers}; descriptors {before} -> {after}"
    print(f"front door: {told}", *attack.breaches, sep="\n", flush=True)
    return attack.breaches


def descriptors(proxy: Proxy) -> int:
    """Open in the proxy; 0 where only root may look."""
    try:
        return len(os.listdir(f"/proc/{proxy.process.pid}/fd"))  # noqa: PTH208
    except OSError:
        return 0


def descriptors_when_idle(proxy: Proxy, before: int) -> int:
    """As few as there are within the time that connections to the API are kept."""
    ends_at = time.monotonic() + UNTIL_IDLE
    while (count := descriptors(proxy)) > before and time.monotonic() < ends_at:
        time.sleep(1)
    return count


def machine(name: str, kind: type[RuleBasedStateMachine], number: int, seconds: float) -> None:
    """Raises what did not hold, with the steps to it."""
    began, rounds = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        run_state_machine_as_test(
            seed(number + rounds)(kind),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        rounds += 1
    print(f"{name}: {rounds * EXAMPLES} examples of up to {STEPS} steps", flush=True)


if __name__ == "__main__":
    main()
