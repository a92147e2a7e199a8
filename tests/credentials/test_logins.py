"""The proxy's own login beside Hermes': which is used, and that nobody's login is written over."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from grok_oauth_proxy.credentials.chain import Chain
from grok_oauth_proxy.credentials.hermes import HermesStore
from grok_oauth_proxy.credentials.logins import Logins
from grok_oauth_proxy.credentials.manager import TokenManager
from grok_oauth_proxy.credentials.oauth import Terminal, Transient
from grok_oauth_proxy.credentials.own import OwnStore
from grok_oauth_proxy.credentials.state import State
from grok_oauth_proxy.credentials.token import Grant, Token
from grok_oauth_proxy.errors import CredentialsUnavailable, StoreProblem
from grok_oauth_proxy.events import Event, LoginChanged, Observer, RefreshFailed, StoreTrouble
from grok_oauth_proxy.tasks.watcher import StoreWatcher
from tests.credentials.fakes import (
    CLIENT,
    HOUR,
    LIFETIME,
    World,
    bearer,
    block,
    expired,
    link,
    name_of,
    store,
)

pytestmark = pytest.mark.anyio


@dataclass
class Place(World):
    """A machine with a login of the proxy's own, and one of Hermes'."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.own = OwnStore.beside(self.state_file.path)

    def own_manager(self, *, client_id: str | None = None, observer: Observer | None = None) -> TokenManager:
        tell = observer or self.events.append
        chain = Chain(self.own, self.own.file, tell, client_id=client_id)
        return TokenManager(chain, self.server, window=300.0, observer=tell, clock=self.hands.clock)

    def both(self) -> tuple[Logins, TokenManager, TokenManager]:
        own, hermes = self.own_manager(), self.manager()
        return Logins([own, hermes], self.events.append), own, hermes

    def signed_in(self, grant: Grant, client_id: str = CLIENT) -> None:
        """What `login` does at its end."""
        self.own.replace(grant, client_id)

    def on_disk(self) -> str | None:
        """The refresh token in the own file."""
        state = self.own.file.load()
        return name_of(state.grant) if state and state.grant else None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def refused(tokens: TokenManager | Logins) -> str:
    with pytest.raises(CredentialsUnavailable) as caught:
        await tokens.get()
    return caught.value.code


async def in_use(tokens: TokenManager | Logins) -> str:
    return (await tokens.get()).bearer.get_secret_value()


async def test_asked_while_a_login_dies(place: Place) -> None:
    """Who asks before the verdict is on the disk is served by the other login, as all who asked sooner."""
    place.signed_in(expired("mine"))
    place.hold(store(block(link("hermes"))))
    place.server.script = [Terminal("invalid_grant")]
    late: list[asyncio.Task[Token]] = []

    def ask_at_once(event: Event) -> None:
        if isinstance(event, RefreshFailed) and event.terminal and not late:
            late.append(asyncio.create_task(logins.get()))

    logins = Logins([place.own_manager(observer=ask_at_once), place.manager()], place.events.append)
    await logins.start()
    early = await logins.get()
    assert await late[0] is early
    assert place.server.sent == ["mine"]


# What is on the disk is somebody's.


async def unsaved(place: Place) -> TokenManager:
    """A proxy with a renewed login that no disk has taken, the folder back in its place."""
    place.signed_in(expired("mine"))
    tokens = place.own_manager()
    await tokens.start()

    async def take_away() -> None:
        place.take_state_folder_away()

    place.server.gate = take_away
    assert await refused(tokens) == "not_saved"
    place.server.gate = None
    place.bring_state_folder_back()
    return tokens


async def test_unsaved_is_saved_later(place: Place) -> None:
    """A renewed login that no disk took is saved as soon as one does, and used then."""
    tokens = await unsaved(place)
    place.hands.advance(60)
    await tokens.get()
    assert place.on_disk() == "mine+1"
    assert place.server.sent == ["mine"]


async def test_unsaved_keeps_the_lock(place: Place) -> None:
    """While a renewed login waits for a disk nobody else gets the lock, and finds the spent link to send."""
    tokens = await unsaved(place)
    with pytest.raises(StoreProblem) as caught:
        await place.own.lock(timeout=0).__aenter__()
    assert caught.value.code == "lock_busy"
    place.hands.advance(60)
    await tokens.get()
    async with place.own.lock(timeout=0):
        assert place.on_disk() == "mine+1"


async def test_unsaved_and_damaged(place: Place) -> None:
    """A file that is damaged while a renewed login waits for a disk is kept aside, not written over."""
    tokens = await unsaved(place)
    place.own.file.path.write_text("{damaged")
    place.hands.advance(60)
    await tokens.get()
    assert place.on_disk() == "mine+1"
    assert place.own.file.path.with_name("login.json.corrupt-1").read_text() == "{damaged"


async def test_read_only_store_is_told_once(place: Place) -> None:
    """Where all logins are dead, what is known of the other store is not told at every look at it."""
    place.signed_in(expired("mine"))
    place.hold(store(block(expired("hermes"))))
    place.remember(expired("hermes"), dead=(expired("hermes"),))
    place.source.read_only = True
    place.server.script = [Terminal("invalid_grant")]
    logins, _, _ = place.both()
    await logins.start()
    for _ in range(3):
        await logins.refresh_ahead()
    told = [event for event in place.events if isinstance(event, StoreTrouble)]
    assert [event.code for event in told].count("store_read_only") <= 1


async def test_unsaved_and_a_new_login(place: Place) -> None:
    """A renewed login that waits for a disk is not written over one that was made meanwhile."""
    tokens = await unsaved(place)
    place.signed_in(link("another"))
    await tokens.reload()
    await tokens.aclose()
    assert place.on_disk() == "another"


async def test_unsaved_and_a_logout(place: Place) -> None:
    """Nor does it bring back one that was ended."""
    tokens = await unsaved(place)
    place.own.clear()
    with pytest.raises(StoreProblem):
        await tokens.reload()
    await tokens.aclose()
    assert place.on_disk() is None


async def test_unreadable_for_a_moment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the file cannot be opened just as the answer comes, the renewed login is not lost."""
    place.signed_in(expired("mine"))
    tokens = place.own_manager()
    await tokens.start()

    def no_descriptors(*_args: object, **_keywords: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def run_out() -> None:
        monkeypatch.setattr(os, "open", no_descriptors)

    place.server.gate = run_out
    assert await refused(tokens) == "not_saved"
    place.server.gate = None
    monkeypatch.undo()
    place.hands.advance(5 * 60)
    await tokens.get()
    assert place.on_disk() == "mine+1"
    assert place.server.sent == ["mine"]


async def test_damaged_while_in_use(place: Place) -> None:
    """A damaged file is kept aside, and the login in memory, its only copy, is written anew."""
    place.signed_in(link("mine"))
    logins, _, hermes = place.both()
    place.hold(store(block(link("hermes"))))
    await logins.start()
    place.own.file.path.write_text("{damaged")
    await logins.reload(logins._managers[0])  # noqa: SLF001 - the watcher has it by hand
    assert place.on_disk() == "mine"
    assert not hermes.holds_login
    assert place.own.file.path.with_name("login.json.corrupt-1").read_text() == "{damaged"


async def test_saved_after_all(place: Place) -> None:
    """A login that was saved at the second try is not told as lost at the end."""
    tokens = await unsaved(place)
    await tokens.aclose()
    assert place.on_disk() == "mine+1"
    assert not [
        event for event in place.events if isinstance(event, StoreTrouble) and event.code == "not_saved"
    ]


async def test_another_process_took_its_doubt_back(place: Place) -> None:
    """That a link may be spent is what the file says: another process may know by now that it is not."""
    place.signed_in(expired("mine"))
    one, other = place.own_manager(), place.own_manager()
    await one.start()
    await other.start()
    place.server.script = [Transient("http_429")]

    async def look() -> None:
        await other.reload()

    place.server.gate = look
    await refused(one)
    place.server.gate = None
    place.hands.advance(120)
    await other.get()
    assert place.server.sent == ["mine", "mine"]


async def test_unsaved_behind_a_new_login(place: Place, tmp_path: Path) -> None:
    """Where a profile signs in anew meanwhile, the spent link in the root store still gets its successor."""
    profile = tmp_path / "profile" / "auth.json"
    profile.parent.mkdir()
    place.hold(store(block(expired("root"))))
    source = HermesStore((profile, place.auth))
    chain = Chain(source, place.state_file, place.events.append)
    tokens = TokenManager(
        chain, place.server, window=300.0, observer=place.events.append, clock=place.hands.clock
    )
    await tokens.start()

    async def no_disk() -> None:
        place.take_state_folder_away()
        place.auth.parent.rename(place.folder / "hermes-gone")

    place.server.gate = no_disk
    assert await refused(tokens) == "not_saved"
    place.server.gate = None
    (place.folder / "hermes-gone").rename(place.auth.parent)
    place.bring_state_folder_back()
    profile.write_text(json.dumps(store(block(link("profile")))))
    place.hands.advance(60)
    await tokens.refresh_ahead()
    assert place.held() == ["root+1"]
    assert await in_use(tokens) == bearer("profile")


async def test_root_store_damaged_for_a_moment(place: Place, tmp_path: Path) -> None:
    """A store that cannot be read is not taken for one without a login, whatever stands before it."""
    profile = tmp_path / "profile" / "auth.json"
    profile.parent.mkdir()
    profile.write_text("{}")
    place.auth.write_text("{damaged")
    with pytest.raises(StoreProblem) as caught:
        HermesStore((profile, place.auth)).read()
    assert caught.value.code == "corrupt"


async def test_file_that_comes_back_as_it_was(place: Place) -> None:
    """An own login whose file was away for a moment is used again, though the file is the same as before."""
    place.signed_in(link("mine"))
    own = place.own_manager()
    logins = Logins([own], place.events.append)
    await logins.start()
    watcher = StoreWatcher(place.own, lambda: logins.reload(own), interval=0.1, observer=place.events.append)
    place.own.file.path.rename(place.folder / "aside")
    await watcher.look()
    assert await refused(logins) == "logged_out"
    (place.folder / "aside").rename(place.own.file.path)
    await watcher.look()
    assert await in_use(logins) == bearer("mine")


# Whose client it is.


async def test_recorded_client(place: Place) -> None:
    """An own login is refreshed for the client it was made for, whatever audience its token names."""
    grant = expired("mine")
    place.signed_in(replace(grant, token=replace(grant.token, client_id="https://api.x.ai")), "the-client")
    tokens = place.own_manager()
    await tokens.start()
    await tokens.get()
    assert place.server.clients == ["the-client"]


async def test_verdict_under_a_foreign_client(place: Place) -> None:
    """What the server says of a link that was sent for a mistaken client id does not outlive the mistake."""
    place.signed_in(expired("mine"))
    mistaken = place.own_manager(client_id="mistaken")
    await mistaken.start()
    place.server.script = [Terminal("invalid_grant")]
    assert await refused(mistaken) == "invalid_grant"
    right = place.own_manager()
    await right.start()
    await right.get()
    assert place.server.clients == ["mistaken", CLIENT]


async def test_own_login_of_no_client(place: Place) -> None:
    """An own login that nothing names a client for keeps nobody from Hermes'."""
    place.own.file.save(State("own", grant=link("mine", client=None)))
    place.hold(store(block(link("hermes"))))
    logins, _, _ = place.both()
    await logins.start()
    assert logins.status().source == "hermes"


# From one to the other.


async def fallen_back(place: Place) -> tuple[Logins, TokenManager, TokenManager]:
    place.signed_in(expired("mine"))
    place.hold(store(block(link("hermes"))))
    logins, own, hermes = place.both()
    await logins.start()
    place.server.script = [Terminal("invalid_grant")]
    assert await in_use(logins) == bearer("hermes")
    return logins, own, hermes


async def test_falls_back_once(place: Place) -> None:
    """A dead login costs one sending, and is told as a problem for as long as the other one serves."""
    logins, _, _ = await fallen_back(place)
    await logins.get()
    assert place.server.sent == ["mine"]
    problem = logins.status().problem
    assert problem is not None
    assert (problem.reason, problem.terminal) == ("own_login_dead", False)
    assert [event.source for event in place.events if isinstance(event, LoginChanged)] == ["hermes"]


async def test_both_sign_in_at_once(place: Place) -> None:
    """When both dead logins are replaced within one look, the own one is used."""
    logins, own, hermes = await fallen_back(place)
    place.hands.advance(LIFETIME + HOUR)
    place.server.script = [Terminal("invalid_grant")]
    await refused(logins)
    place.signed_in(link("mine-again"))
    place.hold(store(block(link("hermes-again"))))
    await asyncio.gather(logins.reload(own), logins.reload(hermes))
    assert logins.status().source == "own"
    assert logins.status().problem is None


async def test_signed_in_while_falling_back(place: Place) -> None:
    """A new own login that comes while Hermes' is being looked at is not passed over."""
    logins, own, hermes = await fallen_back(place)
    place.signed_in(link("mine-again"))
    await logins.reload(own)
    await logins.refresh_ahead()
    assert logins.status().source == "own"
    assert hermes.holds_login


async def test_hermes_store_away_for_a_moment(place: Place) -> None:
    """Hermes' store that was away when the own login died is found without being written anew."""
    place.signed_in(expired("mine"))
    place.hold(store(block(link("hermes"))))
    logins, _, _ = place.both()
    await logins.start()
    place.auth.rename(place.folder / "aside")
    place.server.script = [Terminal("invalid_grant")]
    await refused(logins)
    (place.folder / "aside").rename(place.auth)
    await logins.refresh_ahead()
    assert logins.status().source == "hermes"


async def test_many_find_it_dead(place: Place) -> None:
    """Fifty requests that find no living login look into Hermes' store once, not fifty times."""
    place.signed_in(expired("mine"))
    logins, _, _ = place.both()
    await logins.start()
    place.server.script = [Terminal("invalid_grant")]
    await refused(logins)
    before = len(place.events)
    await asyncio.gather(*(logins.get() for _ in range(50)), return_exceptions=True)
    assert len(place.events) == before
    assert place.server.sent == ["mine"]


async def test_logged_out_before_the_watcher_has_looked(place: Place) -> None:
    """A request that finds the own login ended is served by Hermes' at once."""
    place.signed_in(expired("mine"))
    place.hold(store(block(link("hermes"))))
    logins, _, _ = place.both()
    await logins.start()
    place.own.clear()
    assert await in_use(logins) == bearer("hermes")
    assert place.server.sent == []
    assert logins.status().problem is None


async def test_logout_of_the_dead_one(place: Place) -> None:
    """Once the dead own login is ended too, nothing is wrong any more."""
    logins, own, _ = await fallen_back(place)
    place.own.clear()
    with pytest.raises(StoreProblem):
        await logins.reload(own)
    assert logins.status().problem is None


async def test_logged_out_of_the_only_one(place: Place) -> None:
    """Without a login nothing is tried or counted as failing: somebody must sign in."""
    place.signed_in(link("mine"))
    own = place.own_manager()
    logins = Logins([own], place.events.append)
    await logins.start()
    place.own.clear()
    with pytest.raises(StoreProblem):
        await logins.reload(own)
    for _ in range(3):
        assert await refused(logins) == "logged_out"
    status = logins.status()
    assert status.problem is not None
    assert (status.usable, status.problem.terminal, status.failures) == (False, True, 0)
    assert not [event for event in place.events if isinstance(event, RefreshFailed)]
    place.signed_in(link("mine-again"))
    await logins.reload(own)
    assert await in_use(logins) == bearer("mine-again")


async def test_nothing_to_start_with(place: Place) -> None:
    """Without either login the start is refused."""
    logins, _, _ = place.both()
    with pytest.raises(StoreProblem):
        await logins.start()


async def test_rotates_in_its_file(place: Place) -> None:
    """A rotation is in the own file before anybody uses it, and nothing of Hermes' is made."""
    place.signed_in(expired("mine"))
    own = place.own_manager()
    await own.start()
    assert await in_use(own) == bearer("mine+1", issued=place.hands.wall)
    assert place.on_disk() == "mine+1"
    assert not place.auth.exists()
