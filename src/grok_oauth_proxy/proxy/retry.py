"""What to do after an attempt. Pure: an attempt and its outcome in, a decision out.

Law: a request is sent again only when that cannot do the work twice: a refused token did none, an idempotent
method may be repeated (RFC 9110 §9.2.2), and a connection that failed before a byte was sent carried nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS"})
YOUNG: Final = 10.0
"""Seconds in which the inference edge may not know a token yet (facts: API, it learns of new tokens late)."""
STALE_BUDGET: Final = 2.8
"""Seconds that all waiting because of refused tokens may take in one request: it stays under three."""

_FIRST_WAIT: Final = 0.5
_LAST_WAIT: Final = 1.5
TEMPORARY: Final = frozenset({429, 502, 503})
"""Statuses that may pass by themselves."""
_LONGEST_RETRY_AFTER: Final = 30.0


@dataclass(frozen=True, slots=True)
class Policy:
    """`attempts` further tries after the first; `delay` seconds before the first of them, doubling."""

    attempts: int
    delay: float


class Attempt(NamedTuple):
    """What has been tried for one request.

    Because of refused tokens it was sent again `resends` times, `waits` of them after a pause, and `waited`
    seconds were spent, whatever on.
    """

    method: str
    retries: int = 0
    refreshes: int = 0
    resends: int = 0
    waits: int = 0
    waited: float = 0.0

    def retried(self) -> Attempt:
        return self._replace(retries=self.retries + 1)

    def resent(self, *, paused: bool) -> Attempt:
        return self._replace(resends=self.resends + 1, waits=self.waits + paused)

    def refreshed(self) -> Attempt:
        return self._replace(refreshes=self.refreshes + 1)

    def having_waited(self, seconds: float) -> Attempt:
        return self._replace(waited=seconds)


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give the client what there is."""


@dataclass(frozen=True, slots=True)
class Resend:
    """Send the same request again after `delay` seconds, with the token that is current."""

    delay: float


@dataclass(frozen=True, slots=True)
class Refresh:
    """Get a token other than the refused one and send the request with it."""


Decision = Deliver | Resend | Refresh


def after_stale_token(
    attempt: Attempt, *, token_age: float, is_current: bool, futile: bool, can_resend: bool, doubted: bool
) -> Decision:
    """The API refused the token: `token_age` seconds old, `is_current` unless a newer one is already known.

    An age far below zero comes from a clock that is wrong, and says nothing.
    A token of a few seconds is sent again before another refresh is spent; one refresh a request, and none
    where refreshing is known to be `futile`. Who sends again is the client if the body was not kept: it is
    not made to wait here, and the token is `doubted` when that happened before.
    """
    young = -YOUNG < token_age < YOUNG and not (doubted and not can_resend)
    if (not is_current and attempt.resends < 3) or (young and not can_resend):
        return Resend(0.0)
    wait = _LAST_WAIT if attempt.waits else _FIRST_WAIT
    may_wait = young and attempt.waits < 2 and attempt.waited + wait < STALE_BUDGET
    if may_wait and attempt.waits == 0 and attempt.refreshes == 0:
        return Resend(wait)
    if attempt.refreshes == 0 and not futile:
        return Refresh()
    return Resend(wait) if may_wait else Deliver()


def after_answer(attempt: Attempt, policy: Policy, *, status: int, retry_after: float | None) -> Decision:
    """The API answered, and did not refuse the token; `retry_after` seconds if it named some."""
    if status not in TEMPORARY or attempt.method not in IDEMPOTENT:
        return Deliver()
    if attempt.retries >= policy.attempts or (retry_after or 0.0) > _LONGEST_RETRY_AFTER:
        return Deliver()
    return Resend(max(_backoff(attempt, policy), retry_after or 0.0))


def after_failure(attempt: Attempt, policy: Policy, *, sent: bool, stale: bool = False) -> Decision:
    """There was no answer; `sent` when a byte of the request may have arrived.

    `stale`: a connection from before, which the API had closed. The next one is new, so it need not wait.
    """
    if stale and attempt.retries == 0 and policy.attempts and (not sent or attempt.method in IDEMPOTENT):
        return Resend(0.0)
    if attempt.retries >= policy.attempts or (sent and attempt.method not in IDEMPOTENT):
        return Deliver()
    return Resend(_backoff(attempt, policy))


def _backoff(attempt: Attempt, policy: Policy) -> float:
    return policy.delay * 2.0**attempt.retries
