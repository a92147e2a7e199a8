"""The keeper of the grant: one refresh at a time, saved before used, and no dead or spent link sent again."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from grok_oauth_proxy.credentials.manager import TokenManager
from grok_oauth_proxy.credentials.oauth import NotEntitled, Refreshed, Terminal, Transient
from grok_oauth_proxy.credentials.state import State
from grok_oauth_proxy.credentials.token import Grant
from grok_oauth_proxy.errors import CredentialsUnavailable, StoreProblem
from grok_oauth_proxy.events import ChainAdopted, RefreshFailed, RefreshSucceeded, StoreTrouble
from tests.credentials.fakes import (
    CLIENT,
    HOUR,
    LIFETIME,
    NOW,
    World,
    block,
    entry,
    expired,
    link,
    name_of,
    store,
)

pytestmark = pytest.mark.anyio

OLD = expired("refresh-a")
VALID = link("refresh-a")
SIBLING = link("refresh-sibling")


def of_account(grant: Grant, account: str = "me") -> Grant:
    """The same link, its claims saying whose it is."""
    return link(name_of(grant), account=account)


async def bearer_of(tokens: TokenManager) -> str:
    return (await tokens.get()).bearer.get_secret_value()


def access(grant: Grant) -> str:
    return grant.token.bearer.get_secret_value()


async def refusal(tokens: TokenManager) -> CredentialsUnavailable:
    with pytest.raises(CredentialsUnavailable) as caught:
        await tokens.get()
    return caught.value


class Gate:
    """Holds the server's answers back until it is opened."""

    def __init__(self, world: World) -> None:
        self.asked = asyncio.Event()
        self.opened = asyncio.Event()
        world.server.gate = self._wait

    async def _wait(self) -> None:
        self.asked.set()
        await self.opened.wait()


# What callers get.


async def test_valid_token(world: World) -> None:
    """A token that is still good is given out without asking anybody."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    assert await bearer_of(tokens) == access(VALID)
    assert world.server.sent == []


async def test_nothing_to_start_with(world: World) -> None:
    """Without a login in the store there is no start, and the problem says what to do."""
    with pytest.raises(StoreProblem, match="hermes auth add"):
        await world.started()


@pytest.mark.parametrize(
    ("left", "at_least", "refreshed"),
    [
        (LIFETIME, 0, False),
        (1.1, 0, False),
        (0.9, 0, True),
        (0, 0, True),
        (-HOUR, 0, True),
        (61, 60, False),
        (59, 60, True),
        (301, HOUR, False),
        (299, HOUR, True),
    ],
)
async def test_boundary(world: World, left: float, at_least: float, refreshed: bool) -> None:
    """A token is renewed when it would not outlive its journey, or what the caller needs in its window."""
    grant = link("refresh-a", issued=NOW - LIFETIME + left)
    world.hold(store(block(grant)))
    tokens = await world.started()
    token = await tokens.get(at_least=at_least)
    assert (world.server.sent == ["refresh-a"]) is refreshed
    assert token.remaining(NOW) == pytest.approx(LIFETIME if refreshed else left, abs=0.01)


async def test_short_tokens(world: World) -> None:
    """A token of a few seconds' life is used, and not refreshed on every call."""
    world.server.lifetime = 8
    world.hold(store(block(OLD)))
    tokens = await world.started()
    for _ in range(6):
        await tokens.get()
        world.hands.advance(1)
    assert len(world.server.sent) == 1


async def test_no_refresh_window(world: World) -> None:
    """Without a window, a token in its last second is refreshed and not refused."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 0.5))))
    tokens = await world.started(window=0)
    await tokens.get()
    assert world.server.sent == ["refresh-a"]


async def test_renewed_ahead(world: World) -> None:
    """The token is renewed when its window begins, not before."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    assert tokens.seconds_until_due() == LIFETIME - 300
    await tokens.refresh_ahead()
    assert world.server.sent == []
    world.hands.advance(LIFETIME - 300)
    assert tokens.seconds_until_due() == 0
    await tokens.refresh_ahead()
    assert world.server.sent == ["refresh-a"]
    assert tokens.seconds_until_due() == LIFETIME - 300


async def test_ahead_of_time_nobody_waits(world: World) -> None:
    """While a token is renewed ahead of time, callers get the one that is still good at once."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 100))))
    gate = Gate(world)
    tokens = await world.started()
    renewal = asyncio.create_task(tokens.refresh_ahead())
    await gate.asked.wait()
    token = await asyncio.wait_for(tokens.get(), 1)
    assert token.remaining(NOW) == pytest.approx(100)
    gate.opened.set()
    await renewal


# Single flight.


async def test_single_flight(world: World) -> None:
    """A hundred callers that need a new token at once spend one refresh token and get the same answer."""
    world.hold(store(block(OLD)))
    gate = Gate(world)
    tokens = await world.started()
    callers = [asyncio.create_task(bearer_of(tokens)) for _ in range(100)]
    await gate.asked.wait()
    assert [task.get_name() for task in asyncio.all_tasks()].count("token-refresh") == 1
    gate.opened.set()
    answers = set(await asyncio.gather(*callers))
    assert len(answers) == 1
    assert world.server.sent == ["refresh-a"]


async def test_single_flight_of_the_refused(world: World) -> None:
    """A hundred callers whose token was refused spend one refresh token, and those who come late none."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    refused = await tokens.get()
    renewed = await asyncio.gather(*(tokens.get(refused=refused) for _ in range(100)))
    assert {token.bearer for token in renewed} == {(await tokens.get(refused=refused)).bearer}
    assert refused.bearer not in {token.bearer for token in renewed}
    assert world.server.sent == ["refresh-a"]


async def test_refused_during_a_renewal(world: World) -> None:
    """A token refused while it is being renewed waits for that renewal and starts none of its own."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 100))))
    gate = Gate(world)
    tokens = await world.started()
    refused = await tokens.get()
    renewal = asyncio.create_task(tokens.refresh_ahead())
    await gate.asked.wait()
    caller = asyncio.create_task(tokens.get(refused=refused))
    gate.opened.set()
    assert (await caller).bearer != refused.bearer
    await renewal
    assert world.server.sent == ["refresh-a"]


async def test_refused_while_a_renewal_ends(world: World) -> None:
    """A token that a renewal adopted, and that was refused before that renewal was over, is replaced."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.hold(store(block(SIBLING)))
    leaving, left = asyncio.Event(), asyncio.Event()

    async def leave() -> None:
        leaving.set()
        await left.wait()

    world.source.leaving = leave
    renewal = asyncio.create_task(tokens.refresh_ahead())
    await leaving.wait()
    adopted = await tokens.get()
    assert adopted.bearer == SIBLING.token.bearer
    caller = asyncio.create_task(tokens.get(refused=adopted))
    await asyncio.sleep(0)
    left.set()
    assert (await caller).bearer != adopted.bearer
    await renewal
    assert world.server.sent == ["refresh-sibling"]


async def test_refresh_survives_its_callers(world: World) -> None:
    """When every caller goes away the refresh goes on, and its result is saved and used."""
    world.hold(store(block(OLD)))
    gate = Gate(world)
    tokens = await world.started()
    callers = [asyncio.create_task(tokens.get()) for _ in range(10)]
    await gate.asked.wait()
    for caller in callers:
        caller.cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
    gate.opened.set()
    await tokens.aclose()
    assert world.held() == ["refresh-a+1"]
    assert (await tokens.get()).remaining(NOW) == LIFETIME
    assert world.server.sent == ["refresh-a"]


async def test_aclose_waits(world: World) -> None:
    """Closing waits for the refresh in flight: what it brings is on disk when it returns."""
    world.hold(store(block(OLD)))
    gate = Gate(world)
    tokens = await world.started()
    caller = asyncio.create_task(tokens.get())
    await gate.asked.wait()
    closing = asyncio.create_task(tokens.aclose())
    done, _ = await asyncio.wait({closing}, timeout=0.05)
    assert not done
    gate.opened.set()
    await closing
    assert world.held() == ["refresh-a+1"]
    await caller


async def test_aclose_at_rest(world: World) -> None:
    """Closing a manager that does nothing returns at once, and spends nothing."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    closing = asyncio.create_task(tokens.aclose())
    done, _ = await asyncio.wait({closing}, timeout=1)
    assert done == {closing}
    assert world.server.sent == []


# Saved before used.


async def test_saved_before_published(world: World) -> None:
    """When a caller gets the new token, both files already hold its link, and the spent one is noted."""
    world.hold(store(block(OLD), entry(OLD, source="device_code")))
    tokens = await world.started()
    token = await tokens.get()
    assert world.held() == ["refresh-a+1"]
    state = world.remembered()
    assert state.grant is not None
    assert state.grant.token.bearer == token.bearer
    assert state.successors == {OLD.fingerprint: state.grant.fingerprint}


async def test_saved_before_the_next_is_spent(world: World) -> None:
    """Whenever a link is sent, it stands in both files: a crash at any moment costs at most that one."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    seen: list[tuple[list[str], str, str]] = []

    def inspect(grant: Grant) -> None:
        known = world.remembered().grant
        assert known is not None
        seen.append((world.held(), name_of(known), name_of(grant)))

    world.server.inquiry = inspect
    for _ in range(3):
        await tokens.get()
        world.hands.advance(LIFETIME)
    assert [name for _, _, name in seen] == ["refresh-a", "refresh-a+1", "refresh-a+1+2"]
    assert all(held == [name] and known == name for held, known, name in seen)


async def test_refreshed_under_hermes_lock(world: World) -> None:
    """A refresh holds Hermes' lock from before the store is read until the successor is written."""
    world.hold(store(block(OLD)))
    gate = Gate(world)
    tokens = await world.started()
    caller = asyncio.create_task(tokens.get())
    await gate.asked.wait()
    entered = asyncio.Event()

    async def hermes() -> list[str]:
        async with world.source.lock():
            entered.set()
            return world.held()

    sibling = asyncio.create_task(hermes())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(entered.wait(), 0.2)
    gate.opened.set()
    assert await sibling == ["refresh-a+1"]
    await caller


async def test_refresh_token_kept(world: World) -> None:
    """A reply without a refresh token leaves the link in use: it is neither spent nor dead."""
    world.hold(store(block(OLD)))
    renewed = Grant(link("x").token, OLD.refresh_token)
    world.server.script = [Refreshed(renewed, rotated=False)]
    tokens = await world.started()
    assert await bearer_of(tokens) == access(renewed)
    assert world.held() == ["refresh-a"]
    assert world.remembered().successors == {}
    world.hands.advance(LIFETIME)
    await tokens.get()
    assert world.server.sent == ["refresh-a", "refresh-a"]


# Sharing the grant.


async def test_adopts_a_newer_chain(world: World) -> None:
    """A chain that a sibling has rotated on is adopted under the lock, and no server is asked."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.hold(store(block(SIBLING)))
    assert await bearer_of(tokens) == access(SIBLING)
    assert world.server.sent == []
    assert ChainAdopted("hermes") in world.events


async def test_adopts_for_the_refused(world: World) -> None:
    """A refused token is answered by the sibling's newer one before a refresh is thought of."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    refused = await tokens.get()
    world.hold(store(block(SIBLING)))
    assert (await tokens.get(refused=refused)).bearer == SIBLING.token.bearer
    assert world.server.sent == []


async def test_reload_adopts(world: World) -> None:
    """A changed store is in use after a reload, and the state file knows it."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    world.hold(store(block(SIBLING)))
    await tokens.reload()
    assert await bearer_of(tokens) == access(SIBLING)
    state = world.remembered()
    assert state.grant is not None
    assert name_of(state.grant) == "refresh-sibling"


async def test_reload_while_a_refresh_waits_for_the_lock(world: World) -> None:
    """What another owner writes is in use though he keeps the lock, for which a refresh of ours waits."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    async with world.source.real.lock():
        waiting = asyncio.create_task(tokens.get())
        await asyncio.sleep(0)
        world.hold(store(block(SIBLING)))
        await asyncio.wait_for(tokens.reload(), 5)
        assert await asyncio.wait_for(bearer_of(tokens), 5) == access(SIBLING)
        assert (await asyncio.wait_for(waiting, 5)).bearer.get_secret_value() == access(SIBLING)
    assert world.server.sent == []
    assert tokens.status().problem is None


async def test_end_while_a_refresh_waits_for_the_lock(world: World) -> None:
    """A process that ends does not wait for a lock under which it has done nothing yet."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    async with world.source.real.lock():
        waiting = asyncio.create_task(tokens.get())
        await asyncio.sleep(0)
        await asyncio.wait_for(tokens.aclose(), 5)
        with pytest.raises(CredentialsUnavailable):
            await asyncio.wait_for(waiting, 5)
    assert world.server.sent == []


async def test_reload_of_a_broken_store(world: World) -> None:
    """A store that cannot be read changes nothing about what is in use."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    world.auth.write_text("{")
    with pytest.raises(StoreProblem):
        await tokens.reload()
    assert await bearer_of(tokens) == access(VALID)


async def test_two_proxies(world: World) -> None:
    """Two processes on the same store spend each link once between them."""
    world.hold(store(block(OLD)))
    one, other = await world.started(), await world.started()
    first, second = await asyncio.gather(one.get(), other.get())
    assert first.bearer == second.bearer
    assert world.server.sent == ["refresh-a"]


# Verdicts.


@pytest.mark.parametrize(
    "error",
    [
        "invalid_grant",
        "invalid_client",
    ],
)
async def test_terminal_once(world: World, error: str) -> None:
    """A dead link is sent once, however often and by however many a token is asked for."""
    world.hold(store(block(OLD)))
    world.server.script = [Terminal(error)]
    tokens = await world.started()
    for _ in range(3):
        problem = await refusal(tokens)
        assert problem.code == error
        assert problem.retry_after is None
        await tokens.refresh_ahead()
        await tokens.reload()
        world.hands.advance(24 * HOUR)
    assert world.server.sent == ["refresh-a"]
    assert tokens.seconds_until_due() == math.inf
    failures = [event for event in world.events if isinstance(event, RefreshFailed)]
    assert [failure.terminal for failure in failures] == [True]


async def test_terminal_after_a_restart(world: World) -> None:
    """A dead link is not sent by the next process on the same state file either."""
    world.hold(store(block(OLD)))
    world.server.script = [Terminal("invalid_grant")]
    await refusal(await world.started())
    restarted = await world.started()
    problem = await refusal(restarted)
    assert problem.code == "invalid_grant"
    assert "hermes auth add" in problem.message
    assert world.server.sent == ["refresh-a"]


async def test_new_login_after_a_verdict(world: World) -> None:
    """A new login in the store is used at once, without a restart."""
    world.hold(store(block(OLD)))
    world.server.script = [Terminal("invalid_grant")]
    tokens = await world.started()
    await refusal(tokens)
    world.hold(store(block(SIBLING)))
    await tokens.reload()
    assert await bearer_of(tokens) == access(SIBLING)
    assert tokens.status().problem is None


async def test_new_expired_login_after_a_verdict(world: World) -> None:
    """A new link whose access token has run out is refreshed, not taken for the dead one."""
    world.hold(store(block(OLD)))
    world.server.script = [Terminal("invalid_grant")]
    tokens = await world.started()
    await refusal(tokens)
    world.hold(store(block(expired("refresh-new"))))
    await tokens.reload()
    await tokens.get()
    assert world.server.sent == ["refresh-a", "refresh-new"]


async def test_verdict_against_a_link_that_was_rotated(world: World) -> None:
    """After invalid_grant the store is read again, and what a sibling wrote there meanwhile is adopted."""
    world.hold(store(block(OLD)))
    world.server.script = [Terminal("invalid_grant")]
    world.server.inquiry = lambda _: world.hold(store(block(SIBLING)))
    tokens = await world.started()
    assert await bearer_of(tokens) == access(SIBLING)
    assert world.server.sent == ["refresh-a"]
    assert tokens.status().problem is None


async def test_next_grant_after_a_verdict(world: World) -> None:
    """When the first login is dead the next one in the store is used, now and after a restart."""
    world.hold(store(block(OLD), entry(expired("refresh-b"))))
    world.server.script = [Terminal("invalid_grant")]
    await (await world.started()).get()
    assert world.server.sent == ["refresh-a", "refresh-b"]
    restarted = await world.started()
    await restarted.get()
    assert world.server.sent == ["refresh-a", "refresh-b"]
    assert world.held() == ["refresh-a", "refresh-b+1"]


async def test_every_grant_dead(world: World) -> None:
    """When every login is dead each was asked about once."""
    world.hold(store(block(OLD), entry(expired("refresh-b")), entry(expired("refresh-c"))))
    world.server.script = [Terminal("invalid_grant")] * 9
    tokens = await world.started()
    await refusal(tokens)
    await refusal(await world.started())
    assert world.server.sent == ["refresh-a", "refresh-b", "refresh-c"]


async def test_dead_link_with_a_valid_token(world: World) -> None:
    """A verdict on the refresh token leaves the access token in use for as long as it lives."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 100))))
    world.server.script = [Terminal("invalid_grant")]
    tokens = await world.started()
    await tokens.refresh_ahead()
    assert (await tokens.get()).remaining(NOW) == pytest.approx(100)
    world.hands.advance(100)
    assert (await refusal(tokens)).code == "invalid_grant"


async def test_wrong_client_id_is_curable(world: World) -> None:
    """A login that was refused only because XAI_OAUTH_CLIENT_ID was wrong works again once it is unset."""
    world.hold(store(block(OLD)))
    world.server.script = [Terminal("invalid_client")]
    assert (await refusal(await world.started(client_id="a-typo"))).code == "invalid_client"
    await (await world.started()).get()
    assert world.server.clients == ["a-typo", CLIENT]
    assert world.held() == ["refresh-a+1"]


async def test_verdict_of_another_process(world: World) -> None:
    """A link that another process found dead is reported as dead, and not as not there yet."""
    world.hold(store(block(OLD)))
    bystander = await world.started()
    world.server.script = [Terminal("invalid_grant")]
    await refusal(await world.started())
    assert (await refusal(bystander)).code == "invalid_grant"


async def test_verdict_of_another_process_is_kept(world: World) -> None:
    """A link that another process found dead is not sent by this one."""
    world.hold(store(block(OLD)))
    bystander = await world.started()
    world.server.script = [Terminal("invalid_grant")]
    await refusal(await world.started())
    await refusal(bystander)
    assert world.server.sent == ["refresh-a"]


async def test_not_entitled(world: World) -> None:
    """An account without API access is asked about once; what is still valid is served to its end."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 100))))
    world.server.script = [NotEntitled()]
    tokens = await world.started()
    for _ in range(3):
        await tokens.refresh_ahead()
        assert (await tokens.get()).remaining(world.hands.wall) > 0
        world.hands.advance(30)
    world.hands.advance(30)
    problem = await refusal(tokens)
    assert problem.code == "not_entitled"
    assert "Signing in again will not help" in problem.message
    assert world.server.sent == ["refresh-a"]
    assert world.held() == ["refresh-a"]


async def test_no_client_id(world: World) -> None:
    """A login that names no client is not sent with a guess, and the setting cures it."""
    nameless = link("refresh-a", issued=NOW - LIFETIME - HOUR, client=None)
    world.hold(store(block(nameless)))
    tokens = await world.started()
    assert tokens.client_id is None
    assert (await refusal(tokens)).code == "no_client_id"
    assert world.server.sent == []
    await (await world.started(client_id="from-the-setting")).get()
    assert world.server.clients == ["from-the-setting"]


# What passes by itself.


async def test_transient_backs_off(world: World) -> None:
    """After a transient failure nobody asks again before the pause is over, and each pause is longer."""
    world.hold(store(block(OLD)))
    world.server.script = [Transient("http_500")] * 20
    tokens = await world.started()
    pauses = []
    for number in range(1, 11):
        problem = await refusal(tokens)
        assert problem.code == "http_500"
        assert problem.retry_after is not None
        assert problem.retry_after >= 1
        await refusal(tokens)
        await tokens.refresh_ahead()
        assert len(world.server.sent) == number
        pauses.append(tokens.seconds_until_due())
        world.hands.advance(pauses[-1])
    assert all(0.5 * 2**n <= pause <= 2**n for n, pause in enumerate(pauses[:6]))
    assert all(30 <= pause <= 60 for pause in pauses[6:])
    world.server.script = []
    await tokens.get()
    assert tokens.status().problem is None


async def test_network_gone_for_an_hour(world: World) -> None:
    """However long there was no network, the next try is seconds away when it is back."""
    world.hold(store(block(OLD)))
    world.server.script = [Transient("unreachable")] * 10_000
    tokens = await world.started()
    while world.hands.wall < NOW + HOUR:
        await tokens.refresh_ahead()
        pause = tokens.seconds_until_due()
        assert 0 < pause <= 5
        world.hands.advance(pause)
    world.server.script = []
    await tokens.get()
    assert world.held() == ["refresh-a+1"]


async def test_store_gone_for_an_hour(world: World) -> None:
    """However long the store was away, its login is used again seconds after it is back."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.auth.unlink()
    while world.hands.wall < NOW + HOUR:
        assert (await refusal(tokens)).code == "missing"
        pause = tokens.seconds_until_due()
        assert 0 < pause <= 5
        world.hands.advance(pause)
    world.hold(store(block(OLD)))
    await tokens.get()
    assert world.server.sent == ["refresh-a"]


@pytest.mark.parametrize("retry_after", [90.0, 3600.0])
async def test_retry_after(world: World, retry_after: float) -> None:
    """The pause is never shorter than the server asked for."""
    world.hold(store(block(OLD)))
    world.server.script = [Transient("http_429", retry_after)]
    tokens = await world.started()
    assert (await refusal(tokens)).retry_after == retry_after
    world.hands.advance(retry_after - 1)
    await refusal(tokens)
    assert len(world.server.sent) == 1
    world.hands.advance(1)
    await tokens.get()
    assert world.server.sent == ["refresh-a"] * 2


async def test_old_token_serves_on_without_a_gap(world: World) -> None:
    """However often it is asked during a refresh ahead of time, the old token is what is given out."""
    for number in range(50):
        old = link(f"refresh-{number}", issued=world.hands.wall - LIFETIME + 100)
        world.hold(store(block(old)))
        tokens = await world.started()
        refreshing = asyncio.create_task(tokens.refresh_ahead())
        given = set()
        while not refreshing.done():
            given.add(await bearer_of(tokens))
            await asyncio.sleep(0)
        await refreshing
        assert given == {access(old)}
        assert await bearer_of(tokens) == access(old)
        assert world.server.sent[-1] == f"refresh-{number}"


async def test_reload_during_a_refresh_takes_nothing_away(world: World) -> None:
    """A watcher that sees the store change by our own refresh does not end the old token's last moments."""
    old = link("refresh-a", issued=NOW - LIFETIME + 100)
    world.hold(store(block(old)))
    gate = Gate(world)
    tokens = await world.started()
    refreshing = asyncio.create_task(tokens.refresh_ahead())
    await gate.asked.wait()
    reloading = asyncio.create_task(tokens.reload())
    await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.gather(refreshing, reloading)
    assert await bearer_of(tokens) == access(old)


async def test_transient_with_a_valid_token(world: World) -> None:
    """While the server fails, a token that is still good is served."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 100))))
    world.server.script = [Transient("timeout")]
    tokens = await world.started()
    await tokens.refresh_ahead()
    assert (await tokens.get()).remaining(NOW) == pytest.approx(100)
    problem = tokens.status().problem
    assert problem is not None
    assert not problem.terminal


@pytest.mark.parametrize(
    ("reason", "doubtful"),
    [
        *((reason, True) for reason in ("timeout", "broken_off", "malformed_reply", "empty_reply")),
        *((reason, True) for reason in ("http_500", "http_502", "http_504", "http_520", "http_524")),
        *((reason, False) for reason in ("http_503", "http_429", "http_400", "not_json", "unreachable")),
    ],
)
async def test_link_whose_answer_was_lost(world: World, reason: str, doubtful: bool) -> None:
    """A link that may be spent is sent again within the server's grace, then not before the token is used up.

    A failure that says that nothing was done leaves no such doubt.
    """
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 200))))
    world.server.script = [Transient(reason)] * 20
    tokens = await world.started()
    began = world.hands.wall
    for _ in range(4):
        world.hands.advance(max(0.0, tokens.seconds_until_due()))
        await tokens.refresh_ahead()
    assert world.hands.wall - began < 50
    assert len(world.server.sent) == 4
    world.hands.advance(51)
    token = await tokens.get()
    until_spent = token.remaining(world.hands.wall) - token.margin
    assert (tokens.seconds_until_due() == pytest.approx(until_spent)) is doubtful


async def in_doubt(world: World, *, left: float = 200.0) -> TokenManager:
    """A manager whose link was sent, its answer lost, and its grace is over; `left`: the token's seconds."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + left))))
    world.server.script = [Transient("broken_off")]
    tokens = await world.started()
    await tokens.refresh_ahead()
    world.hands.advance(41)
    return tokens


async def test_grace_counts_from_the_sending(world: World) -> None:
    """However long the answers take to be lost, a link is not sent later than 40 s after it was first."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 250))))
    world.server.script = [Transient("timeout")] * 20
    sent_at: list[float] = []

    def slow(_: Grant) -> None:
        sent_at.append(world.hands.wall)
        world.hands.advance(19)

    world.server.inquiry = slow
    tokens = await world.started()
    for _ in range(6):
        world.hands.advance(max(0.0, min(5.0, tokens.seconds_until_due())))
        await tokens.refresh_ahead()
    assert len(sent_at) > 1
    assert all(moment - NOW <= 40 for moment in sent_at)


async def test_doubtful_link_is_kept_back(world: World) -> None:
    """While the access token lasts, no refused token and no long upload has a doubtful link sent."""
    tokens = await in_doubt(world)
    token = await tokens.get()
    assert await tokens.get(at_least=3600) == token
    with pytest.raises(CredentialsUnavailable) as caught:
        await tokens.get(refused=token)
    assert caught.value.code == "link_in_doubt"
    assert await tokens.get() == token
    assert world.server.sent == ["refresh-a"]


async def test_doubtful_link_is_the_last_resort(world: World) -> None:
    """Once the access token is used up, the doubtful link is all there is, and is sent."""
    tokens = await in_doubt(world)
    world.hands.advance(200)
    await tokens.get()
    assert world.server.sent == ["refresh-a", "refresh-a"]


async def test_lost_answer_is_told_as_such(world: World) -> None:
    """When the server does not take a doubtful link again, it is said that its answer was lost."""
    world.hold(store(block(OLD)))
    world.server.script = [Transient("broken_off"), Terminal("invalid_grant")]
    tokens = await world.started()
    await refusal(tokens)
    world.hands.advance(tokens.seconds_until_due())
    problem = await refusal(tokens)
    assert problem.code == "invalid_grant"
    assert "The answer to an earlier refresh was lost" in problem.message
    assert "The answer to an earlier refresh was lost" in (await refusal(tokens)).message


async def test_doubtful_link_of_a_worthless_token(world: World) -> None:
    """Once the API refuses the access token everywhere, nothing is left to lose, and the link is sent."""
    tokens = await in_doubt(world)
    token = await tokens.get()
    tokens.at_hand.note_refused(token, everywhere=True)
    assert tokens.seconds_until_due() <= 0
    assert await tokens.get(refused=token) != token
    assert world.server.sent == ["refresh-a", "refresh-a"]


async def test_token_that_is_taken_again(world: World) -> None:
    """A token that the API takes after all is worth keeping: its doubtful link is not sent."""
    tokens = await in_doubt(world)
    token = await tokens.get()
    tokens.at_hand.note_refused(token, everywhere=True)
    tokens.at_hand.note_accepted()
    assert tokens.seconds_until_due() > 100
    with pytest.raises(CredentialsUnavailable, match="used up first"):
        await tokens.get(refused=token)
    assert world.server.sent == ["refresh-a"]


async def test_worthless_token_is_no_health(world: World) -> None:
    """A token that the API refuses everywhere and that cannot be refreshed does not count as usable."""
    world.server.script = [Transient("http_503")]
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 200))))
    tokens = await world.started()
    tokens.at_hand.note_refused(await tokens.get(), everywhere=True)
    assert tokens.status().usable
    await tokens.refresh_ahead()
    assert not tokens.status().usable


async def test_doubt_is_told(world: World) -> None:
    """That a link is kept back is told once, ahead of time and after a restart, and ends with the doubt."""
    for tokens in (await in_doubt(world), await world.started()):
        world.events.clear()
        for _ in range(3):
            await tokens.refresh_ahead()
        problem = tokens.status().problem
        assert problem is not None
        assert problem.reason == "link_in_doubt"
    assert world.events == []
    world.hands.advance(200)
    await tokens.get()
    assert tokens.status().problem is None


async def test_sending_that_cannot_be_noted(world: World) -> None:
    """What a crash would make a disaster is put off: while the token is good, no link goes out unnoted."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 100))))
    tokens = await world.started()
    world.take_state_folder_away()
    await tokens.refresh_ahead()
    assert world.server.sent == []
    problem = tokens.status().problem
    assert problem is not None
    assert "state file could not be written" in problem.message
    world.hands.advance(100)
    await tokens.get()
    assert world.server.sent == ["refresh-a"]


async def test_store_that_went_away_is_shown(world: World) -> None:
    """A store that was removed is a problem to tell while the token still serves, until it is back."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    world.auth.unlink()
    with pytest.raises(StoreProblem):
        await tokens.reload()
    problem = tokens.status().problem
    assert problem is not None
    assert problem.reason == "missing"
    world.hold(store(block(VALID)))
    await tokens.reload()
    assert tokens.status().problem is None


async def test_lock_that_cannot_be_had(world: World) -> None:
    """While another program holds the lock a login is used, and the state file left for later."""
    world.source.busy = True
    world.hold(store(block(VALID)))
    tokens = await world.started()
    assert await bearer_of(tokens) == access(VALID)
    assert not await tokens.reload()
    assert world.state_file.load() is None
    world.source.busy = False
    assert await tokens.reload()
    assert world.remembered().grant == VALID


async def test_doubt_outlives_the_process(world: World) -> None:
    """A restart does not make a doubtful link good; within the grace it may be sent again."""
    await in_doubt(world)
    later = await world.started()
    assert later.seconds_until_due() > 100
    await later.refresh_ahead()
    assert world.server.sent == ["refresh-a"]
    world.hands.advance(-30)
    await (await world.started()).refresh_ahead()
    assert world.server.sent == ["refresh-a", "refresh-a"]


async def test_killed_while_the_link_is_out(world: World) -> None:
    """That a link is being sent is on the disk before it is, so that the next process knows."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 200))))
    known: list[bool] = []
    world.server.inquiry = lambda grant: known.append(
        (sending := world.remembered().sending) is not None and sending.link == grant.fingerprint
    )
    await (await world.started()).refresh_ahead()
    assert known == [True]
    assert world.remembered().sending is None


async def test_another_login_is_not_in_doubt(world: World) -> None:
    """The doubt is about one link: a login that takes its place is refreshed as any other."""
    tokens = await in_doubt(world)
    world.hold(store(block(link("refresh-b", issued=world.hands.wall - LIFETIME + 100))))
    await tokens.reload()
    await tokens.refresh_ahead()
    assert world.server.sent == ["refresh-a", "refresh-b"]


async def test_reload_ends_the_pause(world: World) -> None:
    """A login that appears during the pause is used at once."""
    world.hold(store(block(OLD)))
    world.server.script = [Transient("http_503", 3600.0)]
    tokens = await world.started()
    await refusal(tokens)
    world.hold(store(block(SIBLING)))
    await tokens.reload()
    assert await bearer_of(tokens) == access(SIBLING)


@pytest.mark.parametrize("jump", [61.0, -61.0])
async def test_suspended(world: World, jump: float) -> None:
    """A refresh during which the wall clock left the monotonic one is told as a suspend, and sent once."""

    def sleep(_: Grant) -> None:
        world.hands.wall += jump

    world.hold(store(block(OLD)))
    world.server.script = [Transient("broken_off")]
    world.server.inquiry = sleep
    tokens = await world.started()
    assert (await refusal(tokens)).code == "suspended"
    assert world.server.sent == ["refresh-a"]


@pytest.mark.parametrize("jump", [3600.0, -61.0])
async def test_suspended_with_a_valid_token(world: World, jump: float) -> None:
    """What is left of the access token after a suspend is used up before the link is sent again."""

    def sleep(_: Grant) -> None:
        world.hands.wall += jump

    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 290 + max(0.0, jump)))))
    world.server.script = [Transient("broken_off")]
    world.server.inquiry = sleep
    tokens = await world.started(window=4000)
    await tokens.refresh_ahead()
    world.hands.advance(100)
    await tokens.refresh_ahead()
    assert world.server.sent == ["refresh-a"]


async def test_slow_is_not_suspended(world: World) -> None:
    """A refresh that took its time on both clocks is not taken for a suspend."""
    world.hold(store(block(OLD)))
    world.server.script = [Transient("timeout")]
    world.server.inquiry = lambda _: world.hands.advance(90)
    assert (await refusal(await world.started())).code == "timeout"


async def test_expired_while_asleep(world: World) -> None:
    """A token that ran out while the machine slept is renewed, though the monotonic clock stood still."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    world.hands.wall += 8 * HOUR
    assert tokens.seconds_until_due() <= 0
    await tokens.get()
    assert world.server.sent == ["refresh-a"]


async def test_wall_clock_put_back(world: World) -> None:
    """A wall clock that is put back spends nothing."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    world.hands.wall -= 8 * HOUR
    assert await bearer_of(tokens) == access(VALID)
    await tokens.refresh_ahead()
    assert world.server.sent == []


async def test_clock_ahead(world: World) -> None:
    """A clock a day ahead makes no fresh token look expired, so that calls do not spend link after link."""
    world.server.behind = 24 * HOUR
    world.hold(store(block(OLD)))
    tokens = await world.started()
    for _ in range(5):
        await tokens.get()
        await tokens.reload()
    assert world.server.sent == ["refresh-a"]
    assert tokens.seconds_until_due() == LIFETIME - 300


async def test_clock_ahead_after_a_restart(world: World) -> None:
    """With a clock a day ahead a restart spends no link either: the state file knows when the token came."""
    world.server.behind = 24 * HOUR
    world.hold(store(block(OLD)))
    await (await world.started()).get()
    await (await world.started()).get()
    assert world.server.sent == ["refresh-a"]


async def test_server_that_gives_expired_tokens(world: World) -> None:
    """A server whose new tokens are already over is not asked again at once, spending link after link."""
    world.server.lifetime = 0
    world.hold(store(block(OLD)))
    tokens = await world.started()
    for _ in range(5):
        with suppress(CredentialsUnavailable):
            await tokens.get()
    assert len(world.server.sent) == 1


async def test_server_that_raises(world: World) -> None:
    """An exception nobody expected during a refresh is followed by a pause, since the link may be spent."""
    world.hold(store(block(OLD)))
    tokens = await world.started()

    async def fail() -> None:
        raise ZeroDivisionError

    world.server.gate = fail
    for _ in range(5):
        with suppress(ZeroDivisionError, CredentialsUnavailable):
            await tokens.get()
    assert len(world.server.sent) == 1


# A disk that does not take the successor.


async def test_store_full_and_then_not(world: World) -> None:
    """When Hermes' store takes no successor the state file does; it is used, told, and written later."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.source.full = True
    await tokens.get()
    assert world.held() == ["refresh-a"]
    problem = tokens.status().problem
    assert problem is not None
    assert problem.reason == "store_not_written"
    assert any(isinstance(event, StoreTrouble) for event in world.events)
    world.source.full = False
    world.hands.advance(120)
    assert tokens.seconds_until_due() <= 0
    await tokens.refresh_ahead()
    assert world.held() == ["refresh-a+1"]
    assert tokens.status().problem is None
    assert tokens.seconds_until_due() > HOUR
    assert world.server.sent == ["refresh-a"]


async def test_store_full_and_an_answer_lost(world: World) -> None:
    """Looking at a store that still holds the link before does not make a link in doubt one to be sent."""
    world.hold(store(block(link("refresh-a", account="me", issued=NOW - LIFETIME))))
    tokens = await world.started()
    world.source.full = True
    # What the server gives names the same account.
    renewed = link("refresh-b", account="me")
    world.server.script = [Refreshed(renewed, rotated=True), Transient("timeout")]
    served = await tokens.get()
    for wait in (61, 61):
        world.hands.advance(wait)
        with pytest.raises(CredentialsUnavailable):
            await tokens.get(refused=served)
    assert world.server.sent == ["refresh-a", "refresh-b"]


async def test_store_full_and_the_login_dead(world: World) -> None:
    """A login that dies meanwhile does not keep the lock: whoever signs in anew can write the store."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.source.full = True
    served = await tokens.get()
    world.hands.advance(120)
    world.server.script = [Terminal("invalid_grant")]
    with pytest.raises(CredentialsUnavailable):
        await tokens.get(refused=served)
    await tokens.reload()
    world.source.full = False
    world.hands.advance(120)
    assert tokens.seconds_until_due() <= 0
    await tokens.refresh_ahead()
    async with world.source.real.lock(0):
        world.hold(store(block(SIBLING)))
    await tokens.reload()
    assert await bearer_of(tokens) == access(SIBLING)


async def test_store_full_and_restart(world: World) -> None:
    """A successor that only the state file took goes into the store when the next process starts."""
    world.hold(store(block(OLD), entry(OLD, source="device_code")))
    tokens = await world.started()
    world.source.full = True
    served = await tokens.get()
    await tokens.aclose()
    world.source.full = False
    restarted = await world.started()
    assert (await restarted.get()).bearer == served.bearer
    assert world.held() == ["refresh-a+1"]
    assert world.server.sent == ["refresh-a"]


async def test_store_full_for_long(world: World) -> None:
    """Links go on being spent one after the other while only the state file takes them."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.source.full = True
    for _ in range(3):
        await tokens.get()
        world.hands.advance(LIFETIME)
    assert world.server.sent == ["refresh-a", "refresh-a+1", "refresh-a+1+2"]
    world.source.full = False
    await tokens.get()
    assert world.held() == ["refresh-a+1+2+3+4"]


async def test_store_full_is_not_forgotten(world: World) -> None:
    """While the store holds a spent link this is told, and mended soon, also after another refresh."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.source.full = True
    await tokens.get()
    world.hands.advance(LIFETIME)
    await tokens.get()
    assert world.held() == ["refresh-a"]
    assert tokens.status().problem is not None
    world.source.full = False
    world.hands.advance(120)
    await tokens.refresh_ahead()
    assert world.held() == ["refresh-a+1+2"]


async def test_store_full_and_a_new_login(world: World) -> None:
    """A login that replaced the spent link in the store ends the trouble with it."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.source.full = True
    await tokens.get()
    world.source.full = False
    world.hold(store(block(SIBLING)))
    await tokens.reload()
    await tokens.refresh_ahead()
    assert tokens.status().problem is None


async def test_store_that_became_read_only(world: World) -> None:
    """A store that holds a spent link and cannot be written any more stays a problem, and is not hammered."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.source.full = True
    await tokens.get()
    world.source.read_only = True
    world.hands.advance(120)
    await tokens.refresh_ahead()
    assert tokens.status().problem is not None
    assert tokens.seconds_until_due() > 0


async def test_state_not_written(world: World) -> None:
    """When only the state file takes no successor the store does, and the token is used."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.take_state_folder_away()
    await tokens.get()
    assert world.held() == ["refresh-a+1"]
    assert any(isinstance(event, StoreTrouble) for event in world.events)
    world.hands.advance(LIFETIME)
    await tokens.get()
    assert world.server.sent == ["refresh-a", "refresh-a+1"]


async def test_no_disk_takes_it(world: World) -> None:
    """A successor that no disk took is not given out, its predecessor not sent, and it is saved later."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.source.full = True
    world.take_state_folder_away()
    for _ in range(3):
        problem = await refusal(tokens)
        assert problem.code == "not_saved"
        world.hands.advance(120)
    assert world.server.sent == ["refresh-a"]
    world.bring_state_folder_back()
    await tokens.get()
    assert world.server.sent == ["refresh-a"]
    assert name_of(world.remembered().grant or OLD) == "refresh-a+1"
    world.source.full = False
    world.hands.advance(120)
    await tokens.refresh_ahead()
    assert world.held() == ["refresh-a+1"]


async def test_no_disk_takes_it_but_the_token_is_valid(world: World) -> None:
    """While a successor is waiting for a disk, the token before it is served, and saving is tried again."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME + 100))))
    tokens = await world.started()
    world.source.full = True
    world.server.inquiry = lambda _: world.take_state_folder_away()
    await tokens.refresh_ahead()
    assert (await tokens.get()).remaining(NOW) == pytest.approx(100)
    world.hands.advance(60)
    await tokens.refresh_ahead()
    assert world.server.sent == ["refresh-a"]
    problem = tokens.status().problem
    assert problem is not None
    assert problem.reason == "not_saved"
    world.bring_state_folder_back()
    world.source.full = False
    world.hands.advance(tokens.seconds_until_due())
    await tokens.refresh_ahead()
    assert world.held() == ["refresh-a+1"]
    assert tokens.status().problem is None


async def test_unsaved_and_read_only(world: World) -> None:
    """A successor that no disk took is saved in the state file, though the store became read-only."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.source.full = True
    world.take_state_folder_away()
    await refusal(tokens)
    world.bring_state_folder_back()
    world.source.read_only = True
    world.hands.advance(120)
    await tokens.get()
    assert name_of(world.remembered().grant or OLD) == "refresh-a+1"


async def test_store_that_raises(world: World) -> None:
    """Whatever goes wrong while the store is written, the successor is kept, the spent link not sent."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.source.full = True
    world.source.failure = RecursionError("nested too deeply")
    for _ in range(3):
        with suppress(RecursionError, CredentialsUnavailable):
            await tokens.get()
        world.hands.advance(120)
    assert world.server.sent == ["refresh-a"]


# Crashes, and files put back.


async def test_crash_after_the_store_was_written(world: World) -> None:
    """A process that died after writing the store, before its state file, left nothing to mend."""
    world.remember(OLD)
    world.hold(store(block(link("refresh-b"))))
    tokens = await world.started()
    assert await bearer_of(tokens) == access(link("refresh-b"))
    assert name_of(world.remembered().grant or OLD) == "refresh-b"
    assert world.server.sent == []


async def test_crash_before_the_store_was_written(world: World) -> None:
    """A process that died after writing its state file, before the store, left the successor to put there."""
    successor = link("refresh-b")
    world.remember(successor, spent=(OLD,))
    world.hold(store(block(OLD), entry(OLD, source="device_code"), entry(link("refresh-x"))))
    tokens = await world.started()
    assert world.held() == ["refresh-b", "refresh-x"]
    assert await bearer_of(tokens) == access(successor)
    assert world.server.sent == []


async def test_old_backup(world: World) -> None:
    """An old auth.json that was put back is not believed: the current link goes back into it."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    backup = world.auth.read_bytes()
    await tokens.get()
    world.hands.advance(LIFETIME)
    current = await tokens.get()
    world.auth.write_bytes(backup)
    await tokens.reload()
    assert world.held() == ["refresh-a+1+2"]
    assert (await tokens.get()).bearer == current.bearer
    assert world.server.sent == ["refresh-a", "refresh-a+1"]


async def test_old_backup_while_the_proxy_was_down(world: World) -> None:
    """An old auth.json that was put back before the start is not believed either."""
    world.hold(store(block(OLD)))
    backup = world.auth.read_bytes()
    await (await world.started()).get()
    world.auth.write_bytes(backup)
    world.hands.advance(LIFETIME)
    await (await world.started()).get()
    assert world.server.sent == ["refresh-a", "refresh-a+1"]
    assert world.held() == ["refresh-a+1+2"]


@pytest.mark.parametrize("running", [True, False], ids=["while running", "while the proxy was down"])
async def test_old_backup_of_what_hermes_rotated(world: World, running: bool) -> None:
    """A link that Hermes replaced is as spent as one that was replaced here: its copy is not believed."""
    world.hold(store(block(of_account(VALID))))
    backup = world.auth.read_bytes()
    tokens = await world.started()
    world.hold(store(block(of_account(SIBLING))))
    await tokens.reload()
    world.auth.write_bytes(backup)
    if not running:
        tokens = await world.started()
    await tokens.reload()
    assert world.held() == [name_of(SIBLING)]
    assert await bearer_of(tokens) == access(of_account(SIBLING))
    assert world.server.sent == []


@pytest.mark.parametrize("running", [True, False], ids=["while running", "while the proxy was down"])
async def test_old_backup_with_a_clock_ahead(world: World, running: bool) -> None:
    """Which of two links is the newer one is told by the server's clock, not by this machine's."""
    world.hold(store(block(link("refresh-a", issued=NOW - LIFETIME - HOUR, account="me"))))
    ours = link("refresh-b", issued=NOW - 60, account="me")  # the server's clock is a minute behind
    ours = replace(ours, token=replace(ours.token, issued_at=NOW))
    theirs = link("refresh-c", issued=NOW - 50, account="me")
    world.server.script = [Refreshed(ours, rotated=True)]
    tokens = await world.started()
    await tokens.get()
    backup = world.auth.read_bytes()
    world.hold(store(block(theirs)))
    await tokens.reload()
    world.auth.write_bytes(backup)
    if not running:
        tokens = await world.started()
    await tokens.reload()
    assert world.held() == ["refresh-c"]
    assert await bearer_of(tokens) == access(theirs)
    assert world.server.sent == ["refresh-a"]


async def test_another_account_is_put_back(world: World) -> None:
    """The login of another account that somebody puts back is believed: nothing says that it is spent."""
    world.hold(store(block(of_account(VALID, "one"))))
    tokens = await world.started()
    world.hold(store(block(of_account(SIBLING, "two"))))
    await tokens.reload()
    world.hold(store(block(of_account(VALID, "one"))))
    await tokens.reload()
    assert world.held() == [name_of(VALID)]
    assert await bearer_of(tokens) == access(of_account(VALID, "one"))


async def test_second_login_of_an_account(world: World) -> None:
    """Of two logins of one account in the store, the one that stays when the other goes is believed."""
    one, other = of_account(VALID), of_account(SIBLING)
    world.hold(store(None, entry(one), entry(other)))
    tokens = await world.started()
    assert await bearer_of(tokens) == access(one)
    world.hold(store(None, entry(other)))
    await tokens.reload()
    assert await bearer_of(tokens) == access(other)
    world.hold(store(None, entry(other), entry(one)))
    await tokens.reload()
    assert world.held() == [name_of(other), name_of(one)]


async def test_old_backup_on_a_full_disk(world: World) -> None:
    """An old auth.json that can't be mended is not believed for that."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    backup = world.auth.read_bytes()
    current = await tokens.get()
    world.auth.write_bytes(backup)
    world.source.full = True
    await tokens.reload()
    assert (await tokens.get()).bearer == current.bearer
    world.hands.advance(LIFETIME)
    await tokens.get()
    assert world.server.sent == ["refresh-a", "refresh-a+1"]


async def test_spent_link_beside_a_dead_one(world: World) -> None:
    """A spent link is not sent, also when its successor is dead and the store cannot be written."""
    world.remember(expired("refresh-b"), spent=(OLD,), dead=(expired("refresh-b"),))
    world.hold(store(block(OLD)))
    world.source.full = True
    tokens = await world.started()
    await refusal(tokens)
    assert world.server.sent == []


async def test_logins_are_not_mixed(world: World) -> None:
    """A spent link of one login is not overwritten by another login's, which two places would then spend."""
    other = link("refresh-other")
    world.remember(other)
    world.state_file.save(replace(world.remembered(), successors={OLD.fingerprint: "of-another-login"}))
    world.hold(store(block(OLD), entry(other)))
    tokens = await world.started()
    assert await bearer_of(tokens) == access(other)
    assert world.source.real.write_back(other, link("refresh-new")) == 1


async def test_old_backup_after_a_lost_state(world: World) -> None:
    """A backup is not believed either when the state file had missed the rotation."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    backup = world.auth.read_bytes()
    world.take_state_folder_away()
    current = await tokens.get()
    world.bring_state_folder_back()
    world.auth.write_bytes(backup)
    await tokens.reload()
    assert (await tokens.get()).bearer == current.bearer
    world.hands.advance(LIFETIME)
    await tokens.get()
    assert world.server.sent == ["refresh-a", "refresh-a+1"]


async def test_state_file_damaged_while_running(world: World) -> None:
    """A state file that somebody damages is kept under another name, told, and written anew."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    world.state_file.path.write_text("{damaged")
    await tokens.get()
    kept = world.state_file.path.with_name("auth_state.json.corrupt-1")
    assert kept.read_text() == "{damaged"
    assert any(kept.name in event.message for event in world.events if isinstance(event, StoreTrouble))
    assert name_of(world.remembered().grant or OLD) == "refresh-a+1"


async def test_state_file_of_a_later_version(world: World) -> None:
    """One that another version put there while running is not written over; the store alone is kept."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    later = json.dumps({"version": 99, "provider": "xai-oauth"})
    world.state_file.path.write_text(later)
    await tokens.get()
    await tokens.reload()
    assert world.state_file.path.read_text() == later
    assert world.held() == ["refresh-a+1"]
    assert any(isinstance(event, StoreTrouble) and event.code == "foreign" for event in world.events)


async def test_damaged_state_file(world: World) -> None:
    """A state file that cannot be read is told, and the store alone is enough to start with."""
    world.hold(store(block(VALID)))
    world.state_file.path.write_text("{")
    tokens = await world.started()
    assert await bearer_of(tokens) == access(VALID)
    assert any(isinstance(event, StoreTrouble) and event.code == "corrupt" for event in world.events)


async def test_quarantined_by_hermes(world: World) -> None:
    """When Hermes took the tokens away and left no other login, the one in use is served and not spent."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    world.hold(store(block(None)))
    with pytest.raises(StoreProblem):
        await tokens.reload()
    assert await bearer_of(tokens) == access(VALID)
    world.hands.advance(LIFETIME)
    assert (await refusal(tokens)).code == "no_tokens"
    assert world.server.sent == []


# A store that may only be read.


async def test_read_only(world: World) -> None:
    """A login that cannot be written back is used to its end and never refreshed."""
    world.hold(store(block(VALID)))
    world.source.read_only = True
    tokens = await world.started()
    assert await bearer_of(tokens) == access(VALID)
    with pytest.raises(CredentialsUnavailable):
        await tokens.get(refused=VALID.token)
    world.hands.advance(LIFETIME)
    problem = await refusal(tokens)
    assert problem.code == "store_read_only"
    assert str(world.auth) in problem.message
    assert world.server.sent == []


async def test_read_only_follows_the_owner(world: World) -> None:
    """What the owner of a read-only store rotates to is adopted, by request and by reload."""
    world.hold(store(block(OLD)))
    world.source.read_only = True
    tokens = await world.started()
    await refusal(tokens)
    world.hold(store(block(SIBLING)))
    world.hands.advance(120)
    assert await bearer_of(tokens) == access(SIBLING)
    assert tokens.status().problem is None
    assert not world.auth.with_name("auth.lock").exists()


# What is told.


async def test_events(world: World) -> None:
    """A refresh that worked is told with its lifetime, one that did not with its reason."""
    world.hold(store(block(OLD)))
    world.server.script = [Transient("timeout")]
    tokens = await world.started()
    await refusal(tokens)
    world.hands.advance(60)
    await tokens.get()
    told = [event for event in world.events if isinstance(event, RefreshFailed | RefreshSucceeded)]
    assert [type(event) for event in told] == [RefreshFailed, RefreshSucceeded]
    assert told[1] == RefreshSucceeded(rotated=True, lifetime=LIFETIME)


async def test_status(world: World) -> None:
    """The status counts, dates and explains, and holds no secret."""
    world.hold(store(block(OLD)))
    world.server.script = [Transient("timeout")]
    tokens = await world.started()
    assert not tokens.status().usable
    await refusal(tokens)
    world.hands.advance(60)
    await tokens.get()
    status = tokens.status()
    assert status.usable
    assert status.source == "hermes"
    assert (status.successes, status.failures) == (1, 1)
    assert status.seconds_to_expiry == LIFETIME
    assert status.last_refresh == {
        "last_refresh_at": "2027-01-15T08:01:00Z",
        "last_refresh_status": "success",
        "last_refresh_error_class": None,
        "refresh_token_rotated": True,
    }
    assert "refresh-a" not in f"{status} {tokens!r} {world.events}"


async def test_last_refresh_outlives_the_process(world: World) -> None:
    """How the last refresh went is known after a restart."""
    world.hold(store(block(OLD)))
    await (await world.started()).get()
    assert (await world.started()).status().last_refresh["last_refresh_status"] == "success"


@asynccontextmanager
async def waiting(tokens: TokenManager) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(tokens.wait_for_change(30))
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def ends(task: asyncio.Task[None]) -> bool:
    """Whether it is done within a second."""
    done, _ = await asyncio.wait({task}, timeout=1)
    return bool(done)


async def test_wait_for_change(world: World) -> None:
    """Whoever waits for a change wakes for a refresh, for a new login, and when the time is over."""
    world.hold(store(block(OLD)))
    tokens = await world.started()
    async with waiting(tokens) as task:
        await tokens.get()
        assert await ends(task)
    world.hold(store(block(SIBLING)))
    async with waiting(tokens) as task:
        await tokens.reload()
        assert await ends(task)
    assert await ends(asyncio.create_task(tokens.wait_for_change(0.01)))


async def test_unchanged_store_wakes_nobody(world: World) -> None:
    """A reload that brings nothing new is not a change."""
    world.hold(store(block(VALID)))
    tokens = await world.started()
    async with waiting(tokens) as task:
        await tokens.reload()
        await asyncio.sleep(0)
        assert not task.done()


def test_spent_links_are_bounded() -> None:
    """The memory of spent links ends with the oldest, so that the state file stays small."""
    state = State(source="hermes", grant=link("refresh-0"))
    for number in range(100):
        state = state.after_rotation(link(f"refresh-{number}"), link(f"refresh-{number + 1}"))
    assert len(state.successors) == 64
    assert list(state.successors)[-1] == link("refresh-99").fingerprint
    assert link("refresh-0").fingerprint not in state.successors
