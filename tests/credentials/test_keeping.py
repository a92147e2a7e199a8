"""The keeper of the grant through whatever happens, in every order that hypothesis thinks of.

The authorization server is the simulator's ledger behind httpx; stores and locks are real files; time is
told. What is watched is the server's side: which links come in, when, and how many at once.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import httpx
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pydantic import SecretStr

from grok_oauth_proxy.credentials.chain import Chain
from grok_oauth_proxy.credentials.manager import TokenManager
from grok_oauth_proxy.credentials.oauth import AuthorizationServer
from grok_oauth_proxy.credentials.token import Grant, Token, read_token
from grok_oauth_proxy.errors import CredentialsUnavailable, StoreProblem
from grok_oauth_proxy.events import StoreTrouble
from grok_oauth_proxy.sim.grants import DeniedError, Ledger, Pair
from tests.credentials.fakes import CLIENT, LIFETIME, World, block, name_of, store

ISSUER: Final = "https://auth.x.ai"
GRACE: Final = 60.0
PATIENCE: Final = 20.0
"""Seconds of real time after which a call counts as hanging."""
MOST_SENDINGS: Final = 3
"""More in one call would be a loop."""

NOT_SPENT: Final = ("unreachable", "503", "429", "not-entitled", "400-html", "lie")
SPENT_AND_LOST: Final = ("lost", "timeout", "500", "garbage", "torn", "empty")
LATER: Final = (0.0, 0.0, 9.0, 31.0, 61.0, 600.0, LIFETIME)
MEANWHILE: Final = (
    "nothing",
    "nothing",
    "cancel",
    "cancel-all",
    "more",
    "reload",
    "wait",
    "suspend",
    "disk-full",
)


def grant_of(pair: Pair) -> Grant:
    return Grant(token=read_token(pair.access_token), refresh_token=SecretStr(pair.refresh_token or ""))


class Xai:
    """The token endpoint: what it is sent is checked against the law, how it answers is its `fate`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ledger = Ledger(ISSUER)
        self.fate = "well"
        self.meanwhile: Callable[[], None] = lambda: None
        self.broken: list[str] = []
        self.sendings = 0
        self.spent: dict[str, float] = {}
        """When each link was rotated, whoever asked for it and whether or not he was told."""
        self.given: dict[str, str] = {}
        """The successor of each whose answer reached the keeper."""
        self.told: set[str] = set()
        """The links whose fate the keeper was told: spent, or dead."""
        self.written_down: set[str] = set()
        """Those of them that it was told while its state folder was there."""
        self.came_with: dict[str, Token] = {}
        """The access token beside each link."""
        self.worthless: set[SecretStr] = set()
        self._inside = 0

    def sign_in(self) -> Grant:
        """Somebody does, at the machine."""
        return self._noted(grant_of(self.ledger.login(CLIENT, self.world.hands.wall, LIFETIME)))

    def rotate(self, link: str) -> Grant:
        """Raises `DeniedError`."""
        pair = self.ledger.refresh(link, CLIENT, self.world.hands.wall, LIFETIME, grace=GRACE)
        self.spent.setdefault(link, self.world.hands.wall)
        return self._noted(grant_of(pair))

    def lives(self, link: str) -> bool:
        """Whether its login has not been ended."""
        bearer = self.came_with[link].bearer.get_secret_value()
        return self.ledger.accepts(bearer, self.came_with[link].issued_at)

    def _noted(self, grant: Grant) -> Grant:
        self.came_with[name_of(grant)] = grant.token
        return grant

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("openid-configuration"):
            return httpx.Response(200, json={"token_endpoint": f"{ISSUER}/oauth2/token"})
        [link] = parse_qs(request.content.decode())["refresh_token"]
        self._check(link)
        self._inside += 1
        try:
            await asyncio.sleep(0)
            self.meanwhile()
            await asyncio.sleep(0)
            return self._decide(link)
        finally:
            self._inside -= 1

    def _check(self, link: str) -> None:
        """The law, as seen from the other side."""
        self.sendings += 1
        now, token = self.world.hands.wall, self.came_with[link]
        if self._inside:
            self.broken.append("two refreshes at once")
        if link in self.told:
            self.broken.append("a link was sent whose end had been told")
        of_use = token.remaining(now) > token.margin and token.bearer not in self.worthless
        if of_use and link in self.spent and now - self.spent[link] >= GRACE:
            self.broken.append("a link in doubt was sent, though there was something to lose")

    def _decide(self, link: str) -> httpx.Response:
        fate, self.fate = self.fate, "well"
        if fate == "unreachable":
            raise httpx.ConnectError("refused")
        if fate in NOT_SPENT:
            return self._refused(fate, link)
        try:
            grant = self.rotate(link)
        except DeniedError as denied:
            if fate == "well":
                self._tell(link)
                return httpx.Response(400, json={"error": denied.error})
        if fate == "lost":
            raise httpx.ReadError("reset")
        if fate == "timeout":
            raise httpx.ReadTimeout("late")
        if fate != "well":
            bodies = {"500": b"{}", "garbage": b"<html>", "torn": b'{"access_token": "eyJ', "empty": b""}
            return httpx.Response(500 if fate == "500" else 200, content=bodies[fate])
        self._tell(link)
        self.given[link] = name_of(grant)
        tokens = {
            "access_token": grant.token.bearer.get_secret_value(),
            "refresh_token": name_of(grant),
            "expires_in": LIFETIME,
        }
        return httpx.Response(200, json=tokens)

    def _tell(self, link: str) -> None:
        self.told.add(link)
        if self.world.state_file.path.parent.exists():
            self.written_down.add(link)

    def _refused(self, fate: str, link: str) -> httpx.Response:
        if fate == "lie":
            self._tell(link)
            return httpx.Response(400, json={"error": "invalid_grant"})
        if fate == "429":
            return httpx.Response(429, headers={"retry-after": "7"}, json={"error": "slow_down"})
        if fate == "not-entitled":
            return httpx.Response(403, json={"error": "not_entitled"})
        return httpx.Response(503 if fate == "503" else 400, content=b"<html>busy</html>")


class Keeping(RuleBasedStateMachine):
    """One machine, one keeper at a time, and what befalls them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="keeping-")
        self.runner = asyncio.Runner()
        self.world = World(Path(self.folder.name))
        self.xai = Xai(self.world)
        self.http = httpx.AsyncClient(transport=httpx.MockTransport(self.xai.answer))
        self.saved: set[str] = set()
        """The access tokens that were seen on a disk."""
        self.state_folder_gone = False
        self.unseen = False
        """Hermes has rotated, and the keeper need not know yet."""
        self.world.hold(store(block(self.xai.sign_in())))
        self.tokens = self.run(self._started())

    def run(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(doing, PATIENCE))

    async def _started(self) -> TokenManager:
        server = AuthorizationServer(
            self.http, ISSUER, allow_loopback=False, connect_timeout=5.0, clock=self.world.hands.clock
        )
        hear = self.world.events.append
        chain = Chain(self.world.source, self.world.state_file, hear, client_id=None)
        tokens = TokenManager(chain, server, window=300.0, observer=hear, clock=self.world.hands.clock)
        await tokens.start()
        return tokens

    # What happens.

    @rule()
    def the_machine_sleeps(self) -> None:
        self.world.hands.wall += 90.0

    @rule(
        later=st.sampled_from(LATER),
        callers=st.integers(1, 3),
        fate=st.sampled_from(("well",) * 8 + NOT_SPENT + SPENT_AND_LOST),
        refused=st.sampled_from((True, True, False)),
        meanwhile=st.sampled_from(MEANWHILE),
    )
    def requests_come(self, later: float, callers: int, fate: str, refused: bool, meanwhile: str) -> None:
        self.world.hands.advance(later)
        self.xai.fate = fate
        self.run(self._ask(callers, refused=refused, meanwhile=meanwhile))

    @rule(later=st.sampled_from(LATER), fate=st.sampled_from(("well",) * 4 + SPENT_AND_LOST))
    def a_request_is_refused(self, later: float, fate: str) -> None:
        self.requests_come(later, 1, fate, refused=True, meanwhile="nothing")

    @rule(
        later=st.sampled_from((LIFETIME - 200.0, *LATER)),
        fate=st.sampled_from(("well", *NOT_SPENT, *SPENT_AND_LOST)),
    )
    def the_keeper_looks_ahead(self, later: float, fate: str) -> None:
        self.world.hands.advance(later)
        self.xai.fate = fate
        self.xai.sendings = 0
        self.run(self.tokens.refresh_ahead())
        assert self.xai.sendings <= MOST_SENDINGS

    @rule()
    def the_store_is_looked_at(self) -> None:
        with suppress(StoreProblem):
            self.run(self.tokens.reload())
            self.unseen &= self.state_folder_gone or self.world.source.busy

    @rule()
    def the_api_refuses_the_token_everywhere(self) -> None:
        if (token := self.tokens.at_hand.usable(None, 0.0)) is not None:
            self.tokens.at_hand.note_refused(token, everywhere=True)
            self.xai.worthless.add(token.bearer)

    @rule(look=st.booleans())
    def hermes_rotates(self, look: bool) -> None:
        self.run(self._hermes_rotates())
        self.unseen = True
        if look:
            self.the_store_is_looked_at()

    @rule(look=st.booleans())
    def somebody_signs_in(self, look: bool) -> None:
        self.run(self._hermes_writes(lambda: self.xai.sign_in()))
        if look:
            self.the_store_is_looked_at()

    @rule()
    def somebody_signs_in_because_he_must(self) -> None:
        if not self.tokens.dead:
            return
        self.all_is_mended()
        self.somebody_signs_in(look=True)

    @rule(which=st.integers(0, 9))
    def an_old_copy_is_put_back(self, which: int) -> None:
        """One whose link the keeper has spent; nobody else's successor of it is lost by that."""
        if self.unseen:
            return
        if old := [link for link in self.xai.came_with if link in self.xai.told & self.xai.spent.keys()]:
            link = old[which % len(old)]
            grant = Grant(self.xai.came_with[link], SecretStr(link))
            self.run(self._hermes_writes(lambda: grant))

    @rule(which=st.sampled_from(("store", "state", "both", "lock")))
    def something_fails(self, which: str) -> None:
        self.world.source.full |= which in ("store", "both")
        self.world.source.busy |= which == "lock"
        if which in ("state", "both") and not self.state_folder_gone:
            self.world.take_state_folder_away()
            self.state_folder_gone = True

    @rule()
    def all_is_mended(self) -> None:
        self.world.source.full = self.world.source.busy = False
        if self.state_folder_gone:
            self.world.bring_state_folder_back()
            self.state_folder_gone = False

    @rule()
    def it_is_restarted(self) -> None:
        self.world.source.busy = False
        self.run(self.tokens.aclose())
        self._check_that_nothing_is_lost()
        # The next process knows what this one could write down.
        self.xai.told = set() if self.state_folder_gone else self.xai.written_down.copy()
        self.tokens = self.run(self._started())

    # What must hold.

    @invariant()
    def the_law(self) -> None:
        self._look_at_the_disk()
        assert self.xai.broken == []

    def teardown(self) -> None:
        """Whatever has happened, a new login is served at once."""
        try:
            self.all_is_mended()
            self.world.hands.advance(3600.0)
            self.run(self.tokens.refresh_ahead())
            self.somebody_signs_in(look=True)
            assert self.run(self.tokens.get()).remaining(self.world.hands.wall) > 0
            self.the_law()
        finally:
            self.run(self.tokens.aclose())
            self.run(self.http.aclose())
            self.runner.close()
            self.folder.cleanup()

    # How it is done.

    async def _ask(self, callers: int, *, refused: bool, meanwhile: str) -> None:
        token = self.tokens.at_hand.usable(None, 0.0) if refused else None
        asking = [asyncio.create_task(self.tokens.get(refused=token)) for _ in range(callers)]
        others: list[asyncio.Task[Any]] = []

        def befall() -> None:
            self.xai.meanwhile = lambda: None
            if meanwhile == "more":
                others.append(asyncio.create_task(self.tokens.get(refused=token)))
            elif meanwhile == "reload":
                others.append(asyncio.create_task(self.tokens.reload()))
            else:
                self._befall(meanwhile, asking)

        self.xai.sendings, self.xai.meanwhile = 0, befall
        results = await asyncio.gather(*asking, return_exceptions=True)
        results += await asyncio.gather(*others, return_exceptions=True)
        self.xai.meanwhile = lambda: None
        if running := [task for task in asyncio.all_tasks() if task.get_name() == "token-refresh"]:
            await asyncio.wait(running)
        assert self.xai.sendings <= MOST_SENDINGS
        for result in results:
            self._check_result(result, token)

    def _befall(self, what: str, asking: list[asyncio.Task[Token]]) -> None:
        """While a refresh is under way."""
        if what.startswith("cancel"):
            for task in asking if what == "cancel-all" else asking[:1]:
                task.cancel()
        elif what == "disk-full":
            self.world.source.full = True
        elif what == "suspend":
            self.world.hands.wall += 90.0
        elif what == "wait":
            self.world.hands.advance(15.0)

    def _check_result(self, result: object, refused: Token | None) -> None:
        if isinstance(result, Token):
            assert refused is None or result.bearer != refused.bearer
            self._look_at_the_disk()
            assert result.bearer.get_secret_value() in self.saved, "nobody may get what no disk has had"
        else:
            assert isinstance(
                result, CredentialsUnavailable | StoreProblem | asyncio.CancelledError | bool
            ), result

    def _disk(self) -> str:
        files = [self.world.auth, self.world.state_file.path]
        return "".join(path.read_text() for path in files if path.exists())

    def _look_at_the_disk(self) -> None:
        self.saved |= set(re.findall(r'"access_token": "([^"]+)"', self._disk()))

    def _check_that_nothing_is_lost(self) -> None:
        """Every successor that reached the keeper has been on a disk, or it was said to be lost."""
        self._look_at_the_disk()
        given = {
            self.xai.came_with[link].bearer.get_secret_value()
            for link in self.xai.given.values()
            if link not in self.xai.spent  # else it was on a disk for a moment
        }
        events = self.world.events
        said = any(isinstance(event, StoreTrouble) and event.code == "not_saved" for event in events)
        assert said or given <= self.saved

    async def _hermes_rotates(self) -> None:
        """As Hermes does it, under the lock: it sends what stands in its store."""

        def rotated() -> Grant | None:
            [link] = json_links(self.world.auth)
            with suppress(DeniedError):
                return self.xai.rotate(link)
            return None

        await self._hermes_writes(rotated)

    async def _hermes_writes(self, made: Callable[[], Grant | None]) -> None:
        with suppress(StoreProblem):  # the keeper has the lock as long as the store holds a spent link
            async with self.world.source.real.lock(0):
                if (grant := made()) is not None:
                    self.world.hold(store(block(grant)))


def json_links(path: Path) -> list[str]:
    """The refresh token in Hermes' store."""
    return [json.loads(path.read_text())["providers"]["xai-oauth"]["tokens"]["refresh_token"]]


TestKeeping = Keeping.TestCase
TestKeeping.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],  # making a finding small takes minutes: scripts/fuzz does
)
