"""Many owners of one grant, each a process of its own, that all work at the same time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.harness import PATIENCE, Output, ending, run
from tests.hermes.rig import REFRESHED, Rig, Shape, chat

_PAUSE = 0.2
"""Seconds between two requests to a proxy: what they cost is taken from those who rotate."""

_READER = """
import json, sys, time
while True:
    with open(sys.argv[1], "rb") as file:
        store = json.loads(file.read())
    block = store.get("providers", {}).get("xai-oauth")
    places = store.get("credential_pool", {}).get("xai-oauth", []) + ([block["tokens"]] if block else [])
    assert places and all(place["access_token"] and place["refresh_token"] for place in places)
    print("whole", flush=True)
    time.sleep(0.01)
"""


@dataclass(frozen=True)
class Owner:
    """One who takes part: `work` is done over and over; `rotated` counts the links it has spent."""

    work: Callable[[], object]
    rotated: Callable[[], int] = lambda: 0


Participant = Callable[[Rig], AbstractContextManager[Owner]]
"""Starts an owner, and ends it on the way out."""


def hermes(shape: Shape) -> Participant:
    """Hermes' own code, which refreshes again and again. What it adopts it does not spend."""

    @contextmanager
    def taking_part(rig: Rig) -> Iterator[Owner]:
        with rig.driver(shape) as driver:
            driver.resolve()
            yield Owner(driver.refresh)

    return taking_part


def proxy(name: str, **settings: object) -> Participant:
    """A proxy with a state folder of its own, which is asked again and again and refreshes by itself."""

    @contextmanager
    def taking_part(rig: Rig) -> Iterator[Owner]:
        state = rig.home.path / name / "auth_state.json"
        with rig.proxy(HERMES_POLL_INTERVAL=0.5, GROK_PROXY_AUTH_STATE=state, **settings) as running:

            def ask() -> None:
                chat(running)
                time.sleep(_PAUSE)

            yield Owner(ask, lambda: sum(REFRESHED in line for line in running.err.lines))

    return taking_part


def command(name: str, state: str, *, codes: tuple[int, ...] = (0,)) -> Participant:
    """One of the commands, again and again, on the state folder of this name; `codes`: how it may end."""

    @contextmanager
    def taking_part(rig: Rig) -> Iterator[Owner]:
        env = rig.proxy_environment(GROK_PROXY_AUTH_STATE=rig.home.path / state / "auth_state.json")

        def run_it() -> None:
            ended = run(env, name)
            assert (ended.returncode in codes, ended.stderr) == (True, ""), ended.stdout + ended.stderr
            time.sleep(20 * _PAUSE)

        yield Owner(run_it)

    return taking_part


@contextmanager
def reader(rig: Rig) -> Iterator[Owner]:
    """Reads the store as fast as it may, and ends when it is torn or lacks a token."""
    command = [sys.executable, "-c", _READER, str(rig.home.auth)]
    with ending(
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ) as process:
        out, err = Output(process.stdout), Output(process.stderr)

        def read_on() -> None:
            out.wait_for("whole", after=len(out.lines))
            assert process.poll() is None, err.text()
            time.sleep(_PAUSE)

        yield Owner(read_on)


@dataclass
class Crowd:
    """Owners at work, a thread for each; the first failure ends the work of all."""

    owners: list[Owner]
    turns: list[int] = field(init=False)
    """How often each has done its work."""
    failures: list[Exception] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.turns = [0] * len(self.owners)

    @classmethod
    @contextmanager
    def at_work(cls, rig: Rig, participants: tuple[Participant, ...]) -> Iterator[Crowd]:
        with ExitStack() as stack:
            crowd = cls([stack.enter_context(participant(rig)) for participant in participants])
            threads = [threading.Thread(target=crowd._repeat, args=(n,)) for n in range(len(crowd.owners))]
            for thread in threads:
                thread.start()
            try:
                yield crowd
            finally:
                crowd._ending.set()
                for thread in threads:
                    thread.join(PATIENCE)

    def _repeat(self, number: int) -> None:
        while not self._ending.is_set():
            try:
                self.owners[number].work()
            except Exception as failure:  # noqa: BLE001 - the test tells it
                self.failures.append(failure)
                self._ending.set()
            else:
                self.turns[number] += 1

    def work_until(self, enough: Callable[[], bool], patience: float) -> None:
        """Until `enough`, the first failure, or the end of the patience (seconds)."""
        deadline = time.monotonic() + patience
        while not (enough() or self._ending.wait(0.25)):
            assert time.monotonic() < deadline, self.turns
