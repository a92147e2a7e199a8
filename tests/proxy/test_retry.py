"""What is done after an attempt: tables, and a walk over every path through the decisions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pytest

from grok_oauth_proxy.proxy.retry import (
    STALE_BUDGET,
    YOUNG,
    Attempt,
    Decision,
    Deliver,
    Policy,
    Refresh,
    Resend,
    after_answer,
    after_failure,
    after_stale_token,
)

POLICY = Policy(attempts=2, delay=0.5)
FIRST = Attempt("POST")

STALE = {
    # attempt, age of the token, is it the current one, is refreshing futile
    "old-token": (FIRST, 3600.0, True, False, Refresh()),
    "just-not-young": (FIRST, YOUNG, True, False, Refresh()),
    "young-token": (FIRST, 0.237, True, False, Resend(0.5)),
    "nearly-not-young": (FIRST, YOUNG - 0.1, True, False, Resend(0.5)),
    "issued-in-the-future": (FIRST, -5.0, True, False, Resend(0.5)),
    "issued-far-in-the-future": (FIRST, -3600.0, True, False, Refresh()),
    "newer-is-known": (FIRST, 3600.0, False, False, Resend(0.0)),
    "newer-is-known-and-young": (FIRST, 0.1, False, False, Resend(0.0)),
    "old-after-refresh": (Attempt("POST", refreshes=1, waited=0.3), 3600.0, True, False, Deliver()),
    "young-after-refresh": (Attempt("POST", refreshes=1, waited=0.3), 0.3, True, False, Resend(0.5)),
    "young-after-slow-refresh": (Attempt("POST", refreshes=1, waited=2.6), 0.3, True, False, Deliver()),
    "young-after-refresh-and-wait": (
        Attempt("POST", refreshes=1, resends=1, waits=1, waited=1.8),
        1.8,
        True,
        False,
        Deliver(),
    ),
    "newer-again": (Attempt("POST", resends=1), 3600.0, False, False, Resend(0.0)),
    "newer-too-often": (Attempt("POST", resends=3), 3600.0, False, False, Refresh()),
    "newer-too-often-and-refreshed": (
        Attempt("POST", resends=3, refreshes=1, waits=2, waited=2.0),
        0.5,
        False,
        False,
        Deliver(),
    ),
    "refreshing-is-futile": (FIRST, 3600.0, True, True, Deliver()),
    "futile-and-young": (FIRST, 2.0, True, True, Resend(0.5)),
    "futile-but-newer-is-known": (FIRST, 3600.0, False, True, Resend(0.0)),
    "budget-is-spent": (Attempt("POST", waited=2.9), 2.0, True, True, Deliver()),
}


@pytest.mark.parametrize(
    ("attempt", "age", "current", "futile", "decision"), STALE.values(), ids=STALE.keys()
)
def test_stale_token(attempt: Attempt, age: float, current: bool, futile: bool, decision: Decision) -> None:
    """Newer tokens first, then patience with young ones, then one refresh; none after a futile one."""
    decided = after_stale_token(
        attempt, token_age=age, is_current=current, futile=futile, can_resend=True, doubted=True
    )
    assert decided == decision


@pytest.mark.parametrize(
    ("age", "current", "futile", "doubted", "decision"),
    [
        (3600.0, True, False, False, Refresh()),
        (0.2, True, False, False, Resend(0.0)),
        (0.2, True, False, True, Refresh()),
        (0.2, False, False, False, Resend(0.0)),
        (3600.0, True, True, False, Deliver()),
    ],
    ids=["old", "young", "young-once-more", "newer-is-known", "refreshing-is-futile"],
)
def test_stale_token_and_a_lost_body(
    age: float, current: bool, futile: bool, doubted: bool, decision: Decision
) -> None:
    """For a body that is gone a young token is renewed the second time, and nobody is kept waiting."""
    decided = after_stale_token(
        FIRST, token_age=age, is_current=current, futile=futile, can_resend=False, doubted=doubted
    )
    assert decided == decision


@dataclass(frozen=True)
class Path:
    """One way a request can go while every token is refused."""

    decisions: tuple[Decision, ...]
    waited: float

    @property
    def refreshes(self) -> int:
        return sum(isinstance(decision, Refresh) for decision in self.decisions)


AGES = (0.0, 5.0, YOUNG - 0.01, YOUNG)
"""Only whether a token is young counts; with each age more the paths are thrice as many."""
DURATIONS = (0.0, 0.3, 1.0, 1.99, 3.0)
"""Seconds a refresh takes; the caller waits for as much of it as the budget allows."""


def walk(attempt: Attempt, age: float, futile: bool, taken: tuple[Decision, ...] = ()) -> Iterator[Path]:
    """Every path from here, whatever the tokens' ages, the refreshes' lengths and other requests do."""
    assert len(taken) < 20, f"no end: {taken}"
    for current in (True, False):
        decision = after_stale_token(
            attempt, token_age=age, is_current=current, futile=futile, can_resend=True, doubted=True
        )
        path = (*taken, decision)
        match decision:
            case Deliver():
                yield Path(path, attempt.waited)
            case Resend(delay):
                # The token sent next is the same one, older by the delay, or another's, of any age.
                ages = (age + delay,) if current else AGES
                for next_age in ages:
                    following = attempt.resent(paused=delay > 0).having_waited(attempt.waited + delay)
                    yield from walk(following, next_age, futile, path)
            case Refresh():
                for duration in DURATIONS:
                    took = min(duration, STALE_BUDGET - attempt.waited)
                    following = attempt.refreshed().having_waited(attempt.waited + took)
                    yield from walk(following, 0.0, futile, path)


@pytest.fixture(scope="module")
def paths() -> list[Path]:
    return [path for age, futile in product(AGES, (True, False)) for path in walk(FIRST, age, futile)]


def test_every_path_ends(paths: list[Path]) -> None:
    """Whatever happens, the client gets an answer after a handful of attempts."""
    assert len(paths) > 100
    assert max(len(path.decisions) for path in paths) <= 7


def test_one_refresh_a_request(paths: list[Path]) -> None:
    """No path through the decisions spends a second refresh."""
    assert {path.refreshes for path in paths} == {0, 1}


def test_waiting_is_bounded(paths: list[Path]) -> None:
    """No path waits longer than the budget, and the plain waits alone stay below it."""
    assert max(path.waited for path in paths) <= STALE_BUDGET
    plain = [sum(step.delay for step in path.decisions if isinstance(step, Resend)) for path in paths]
    assert 1.5 < max(plain) < STALE_BUDGET


def accepted_after(lag: float, *, within: float) -> float | None:
    """Seconds until a request a second succeeds, where the API learns of new tokens only after `lag`."""
    now, minted, futile = 1000.0, 1000.0, False
    while now < 1000.0 + within:
        attempt, decision = Attempt("POST"), None
        while not isinstance(decision, Deliver):
            if now - minted >= lag:
                return now - 1000.0
            decision = after_stale_token(
                attempt,
                token_age=now - minted,
                is_current=True,
                futile=futile,
                can_resend=True,
                doubted=True,
            )
            if isinstance(decision, Resend):
                attempt, now = attempt.resent(paused=decision.delay > 0), now + decision.delay
            elif isinstance(decision, Refresh):
                attempt, futile, minted = attempt.refreshed(), True, now + 0.1
                now += 0.1
        now += 1
    return None


@pytest.mark.parametrize(
    "lag",
    [
        0.2,
        2.0,
        30.0,
        120.0,
    ],
)
def test_late_edge(lag: float) -> None:
    """An edge that learns of new tokens late accepts one in the end: refreshes leave it the time."""
    assert accepted_after(lag, within=1200) is not None


ANSWERS = {
    "get-503": (Attempt("GET"), 503, None, Resend(0.5)),
    "get-502": (Attempt("GET"), 502, None, Resend(0.5)),
    "get-429": (Attempt("GET"), 429, None, Resend(0.5)),
    "head-503": (Attempt("HEAD"), 503, None, Resend(0.5)),
    "options-503": (Attempt("OPTIONS"), 503, None, Resend(0.5)),
    "second-time": (Attempt("GET", retries=1), 503, None, Resend(1.0)),
    "third-time": (Attempt("GET", retries=2), 503, None, Deliver()),
    "post-503": (Attempt("POST"), 503, None, Deliver()),
    "post-429": (Attempt("POST"), 429, 1.0, Deliver()),
    "put-503": (Attempt("PUT"), 503, None, Deliver()),
    "delete-503": (Attempt("DELETE"), 503, None, Deliver()),
    "patch-503": (Attempt("PATCH"), 503, None, Deliver()),
    "lower-case-get": (Attempt("get"), 503, None, Deliver()),
    "get-200": (Attempt("GET"), 200, None, Deliver()),
    "get-404": (Attempt("GET"), 404, None, Deliver()),
    "get-500": (Attempt("GET"), 500, None, Deliver()),
    "get-504": (Attempt("GET"), 504, None, Deliver()),
    "told-to-wait": (Attempt("GET"), 429, 7.0, Resend(7.0)),
    "told-to-wait-less": (Attempt("GET"), 429, 0.1, Resend(0.5)),
    "told-to-wait-at-most": (Attempt("GET"), 429, 30.0, Resend(30.0)),
    "told-to-wait-too-long": (Attempt("GET"), 429, 30.1, Deliver()),
    "told-to-wait-for-ever": (Attempt("GET"), 429, math.inf, Deliver()),
}


@pytest.mark.parametrize(
    ("attempt", "status", "retry_after", "decision"), ANSWERS.values(), ids=ANSWERS.keys()
)
def test_answer(attempt: Attempt, status: int, retry_after: float | None, decision: Decision) -> None:
    """Only what may be repeated is, a few times, and not sooner than the API asked for."""
    assert after_answer(attempt, POLICY, status=status, retry_after=retry_after) == decision


FAILURES = {
    "get-sent": (Attempt("GET"), True, Resend(0.5)),
    "get-not-sent": (Attempt("GET"), False, Resend(0.5)),
    "get-sent-too-often": (Attempt("GET", retries=2), True, Deliver()),
    "post-sent": (Attempt("POST"), True, Deliver()),
    "post-not-sent": (Attempt("POST"), False, Resend(0.5)),
    "post-not-sent-again": (Attempt("POST", retries=1), False, Resend(1.0)),
    "post-not-sent-too-often": (Attempt("POST", retries=2), False, Deliver()),
    "delete-sent": (Attempt("DELETE"), True, Deliver()),
}


@pytest.mark.parametrize(("attempt", "sent", "decision"), FAILURES.values(), ids=FAILURES.keys())
def test_failure(attempt: Attempt, sent: bool, decision: Decision) -> None:
    """A request that may have arrived is sent again only if doing it twice does no harm."""
    assert after_failure(attempt, POLICY, sent=sent) == decision


@pytest.mark.parametrize(
    ("attempt", "sent", "decision"),
    [
        (Attempt("GET"), True, Resend(0.0)),
        (Attempt("POST"), False, Resend(0.0)),
        (Attempt("POST"), True, Deliver()),
        (Attempt("GET", retries=1), True, Resend(1.0)),
    ],
)
def test_connection_that_was_closed_while_idle(attempt: Attempt, sent: bool, decision: Decision) -> None:
    """The first time it is no failure: what may be repeated goes over another connection at once."""
    assert after_failure(attempt, POLICY, sent=sent, stale=True) == decision


def test_no_retries() -> None:
    """With no attempts allowed nothing is tried again."""
    none = Policy(attempts=0, delay=1.0)
    assert after_answer(Attempt("GET"), none, status=503, retry_after=None) == Deliver()
    assert after_failure(Attempt("GET"), none, sent=False) == Deliver()
    assert after_failure(Attempt("GET"), none, sent=True, stale=True) == Deliver()


def test_attempts_are_counted_apart() -> None:
    """What is tried for stale tokens and for failures does not count against each other."""
    attempt = FIRST.retried().resent(paused=True).refreshed().having_waited(1.5)
    assert attempt == Attempt("POST", retries=1, refreshes=1, resends=1, waits=1, waited=1.5)
