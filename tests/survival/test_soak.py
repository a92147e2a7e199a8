"""An hour in half a minute: tokens that live for seconds, faults by chance, and constant traffic.

SURVIVAL_SOAK_SECONDS=3600 makes it a real hour; SURVIVAL_SOAK_SEED=N repeats the chances of another run.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import PATIENCE, Home, Json, Proxy, provider_store, proxy_running
from tests.sim.harness import Sim, client
from tests.survival.scene import assert_intact, assert_served, expire_access, queue_fault
from tests.survival.test_token_endpoint import FAILURES
from tests.test_workers import wait_until

SECONDS = float(os.environ.get("SURVIVAL_SOAK_SECONDS", "20"))
SEED = int(os.environ.get("SURVIVAL_SOAK_SEED", "0")) or secrets.randbelow(10**6)

LIFE = 5.0
"""Seconds of an access token: a refresh that fails has one left to be tried again."""
PROXIES = 3
CLIENTS = 2
"""Of each proxy."""
QUESTION: Json = {"model": "grok-4", "stream": True, "messages": [{"role": "user", "content": "hello"}]}


@dataclass
class Scene:
    """Some proxies on one store, and all that happens to them."""

    home: Home
    sim: Sim
    proxies: list[Proxy]
    states: list[Path]
    chance: random.Random
    happened: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hermes' lock of the store."""
        with self.home.auth.with_name("auth.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def failing_refresh(self) -> None:
        kind = self.chance.choice([*FAILURES, "drop-after", "slow=0.5"])
        self.story.append(kind)
        queue_fault(self.sim, kind)

    def refused_tokens(self) -> None:
        """All there are, once everybody has the newest; and then everybody gets one that is taken.

        One request survives one token that is refused, not a second that a sibling got before the first was.
        """
        wait_until(self._expire_access)
        for proxy in self.proxies:
            assert_served(proxy)

    def _expire_access(self) -> bool:
        """False when somebody does not have the newest yet: to get it he may need the lock."""
        with self.lock():
            if in_step := self._in_step():
                expire_access(self.sim)
        return in_step

    def _in_step(self) -> bool:
        """Whether all have the link in use that is in the store, and have put it down."""
        links = {json.loads(path.read_bytes())["tokens"]["refresh_token"] for path in self.states}
        return links == self.home.refresh_tokens()

    def sibling(self) -> None:
        """What Hermes does: it rotates under the lock and writes back."""
        with self.lock():
            (link,) = self.home.refresh_tokens()
            self.home.write_store(provider_store(self.sim.refresh(link).raise_for_status().json()))

    def torn_store(self) -> None:
        """For a moment nobody can read it; whoever did it holds the lock."""
        with self.lock():
            content = self.home.auth.read_bytes()
            self.home.auth.write_bytes(content[: self.chance.randrange(len(content))])
            time.sleep(0.3)
            self.home.auth.write_bytes(content)

    def old_copy(self) -> None:
        """A copy of the store is put back after somebody rotated; the newest link takes its place again."""
        before = self.home.read_store()
        self.sibling()
        wait_until(self._in_step)
        with self.lock():
            self.home.write_store(before)
        wait_until(lambda: self.home.read_store() != before)

    def nap(self) -> None:
        pid = self.chance.choice(self.proxies).process.pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.1, 1.0))
        os.kill(pid, signal.SIGCONT)

    def new_login(self) -> None:
        with self.lock():
            self.home.write_store(provider_store(self.sim.login()))

    def calm_down(self) -> None:
        """Wait until nobody has a problem: after it the token endpoint owes nobody an answer."""
        deadline = time.monotonic() + PATIENCE
        while True:
            queued = self.sim.http.post("/_sim/token-faults", json={"kind": "500", "times": 0}).json()[
                "queued"
            ]
            unwell = [report for proxy in self.proxies if (report := proxy.health())["status"] != "ok"]
            if not queued and not unwell:
                return
            assert time.monotonic() < deadline, (queued, unwell)
            time.sleep(0.05)

    def go_on(self, until: float, ended: threading.Event) -> None:
        """One thing after the other, until the time (monotonic) or the first failure of a client."""
        events: list[Callable[[], None]] = [
            self.failing_refresh,
            self.refused_tokens,
            self.sibling,
            self.torn_store,
            self.old_copy,
            self.nap,
            self.new_login,
        ]
        while time.monotonic() < until and not ended.wait(self.chance.uniform(0.1, 0.6)):
            self.calm_down()
            event = self.chance.choice([self.failing_refresh, *events])
            self.happened[event.__name__] += 1
            self.story.append(f"{time.strftime('%T')} {event.__name__}")
            event()
        self.calm_down()


@dataclass
class Clients:
    """Requests without an end, short ones and event streams."""

    served: int = 0
    failures: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def at_work(self, proxies: list[Proxy]) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask_on, args=(proxy,)) for proxy in proxies * CLIENTS]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()
            for thread in threads:
                thread.join(PATIENCE)

    def _ask_on(self, proxy: Proxy) -> None:
        with client(proxy.url, timeout=PATIENCE) as http:
            while not self.ended.wait(0.02):
                echo = http.post("/v1/echo", content=b"x" * 1000)
                stream = http.post("/v1/chat/completions", json=QUESTION)
                answers = {echo: echo.status_code == 200, stream: stream.text.endswith("data: [DONE]\n\n")}
                with self._lock:
                    self.served += sum(answers.values())
                for answer in (answer for answer, good in answers.items() if not good):
                    told = [line for line in proxy.err.lines if " INFO    POST /v1" not in line]
                    self.failures += [time.strftime("%T"), str(answer), answer.text, *told[-20:]]
                    self.ended.set()


def test_soak(home: Home, own_sim: Sim) -> None:
    """Whatever happens to tokens, files and processes, every request is answered and no link sent twice."""
    own_sim.patch(access_lifetime=LIFE, grace=60)
    home.write_store(provider_store(own_sim.login()))
    clients = Clients()
    with ExitStack() as stack:
        states = [home.path / str(n) / "auth_state.json" for n in range(PROXIES)]
        proxies = [
            stack.enter_context(proxy_running(home, own_sim, GROK_PROXY_AUTH_STATE=state)) for state in states
        ]
        scene = Scene(home, own_sim, proxies, states, random.Random(SEED))  # noqa: S311 - faults
        with clients.at_work(proxies):
            try:
                scene.go_on(time.monotonic() + SECONDS, clients.ended)
            except AssertionError as failure:
                clients.failures.append(str(failure))
        told = f"seed {SEED}: {clients.served} served, {dict(scene.happened)}, {own_sim.counters()}"
        print(told)  # noqa: T201 - shown when it fails, and by pytest -s
        assert not clients.failures, "\n".join([told, *scene.story, *clients.failures])
        assert clients.served > 10 * SECONDS
        counters = own_sim.counters()
        assert counters["refreshes"] > SECONDS / LIFE / 2
        assert_intact(home, own_sim)
