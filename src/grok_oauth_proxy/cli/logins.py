"""Which login a start would use, read from the files alone.

Law: nothing is written, locked, renamed or sent; the verdict is the one the proxy would come to.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from grok_oauth_proxy.credentials.chain import Chain
from grok_oauth_proxy.credentials.hermes import HermesStore
from grok_oauth_proxy.credentials.messages import BLOCKED, BY_SOURCE, KEY_OWNER, NOBODY, OWN
from grok_oauth_proxy.credentials.own import OwnStore
from grok_oauth_proxy.credentials.state import State, StateFile
from grok_oauth_proxy.credentials.token import Grant
from grok_oauth_proxy.errors import StoreProblem
from grok_oauth_proxy.events import Event
from grok_oauth_proxy.settings import Settings


@dataclass(frozen=True, slots=True)
class Login:
    """A login as it lies on the disk; `path` is the file it was looked for in.

    `problem` is (code, message) of what keeps it from being used. `sent_at`: when its refresh token was
    sent without an answer, wall seconds.
    """

    source: str
    path: Path | None
    grant: Grant | None = None
    client_id: str | None = None
    problem: tuple[str, str] | None = None
    last_refresh: Mapping[str, str | bool | None] = field(default_factory=dict)
    sent_at: float | None = None
    instead_of: tuple[str, str] | None = None
    """What is wrong with the proxy's own login, in place of which this one is used."""

    @property
    def is_missing(self) -> bool:
        """Nobody is signed in, as far as the files tell."""
        return self.problem is not None and self.problem[0] in ("missing", "no_tokens")

    @property
    def owner(self) -> str:
        if self.is_missing:
            return NOBODY
        return BY_SOURCE[self.source].owner if self.source in BY_SOURCE else KEY_OWNER

    @property
    def account(self) -> dict[str, object]:
        """The account as the access token's claims tell it."""
        token = self.grant.token if self.grant else None
        return {
            "tier": token.tier if token else None,
            "principal_type": token.principal_type if token else None,
        }


def own_path(settings: Settings) -> Path:
    return OwnStore.beside(settings.grok_proxy_auth_state).file.path


def read_login(settings: Settings) -> Login:
    """The login that CREDENTIAL_SOURCE leads to: by itself the own one while it lives, else Hermes'."""
    source = settings.credential_source
    if source == "api-key":
        return Login("api-key", None)
    own = None if source == "hermes" else read_own(settings)
    if source == "own":
        missing = (
            "no_tokens",
            f"{own_path(settings)} holds no login of the proxy's own. Sign in with {OWN.sign_in}.",
        )
        return own or Login("own", own_path(settings), problem=missing)
    if own and not own.problem:
        return own
    hermes = read_hermes(settings)
    if own and hermes.problem:
        return own
    return replace(hermes, instead_of=own.problem) if own else hermes


def read_own(settings: Settings) -> Login | None:
    """The login that the proxy made itself; None when there is none."""
    path = own_path(settings)
    try:
        state = StateFile(path).load()
    except StoreProblem as problem:
        return Login("own", path, problem=(problem.code, problem.message))
    if state is None or state.grant is None:
        return None
    client_id = settings.xai_oauth_client_id or state.client_id or state.grant.token.client_id
    verdict, _, of_client = state.dead.get(state.grant.fingerprint, "").partition(" ")
    dead = verdict if of_client in ("", client_id) else ""
    return _login("own", path, state, state.grant, client_id, dead or None)


def read_hermes(settings: Settings) -> Login:
    """Hermes' login, in the light of what the proxy's state file knows of it."""
    store = HermesStore(settings.hermes_stores)
    path = settings.hermes_stores[0]
    chain = Chain(
        store, StateFile(settings.grok_proxy_auth_state), _unheard, client_id=settings.xai_oauth_client_id
    )
    with suppress(StoreProblem):  # the proxy would go on without it too; the doctor tells of it
        chain.state = StateFile(settings.grok_proxy_auth_state).load() or chain.state
    try:
        chain.adopt(store.read(), save=False)
    except StoreProblem as problem:
        return Login("hermes", path, problem=(problem.code, problem.message))
    if chain.grant is None:
        return Login("hermes", path)
    return _login("hermes", path, chain.state, chain.grant, chain.client_id, chain.verdict)


def _login(
    source: str, path: Path, state: State, grant: Grant, client_id: str | None, verdict: str | None
) -> Login:
    reason = verdict or (None if client_id else "no_client_id")
    sending = state.sending
    return Login(
        source,
        path,
        grant=grant,
        client_id=client_id,
        problem=(reason, BY_SOURCE[source].say(BLOCKED.get(reason, reason))) if reason else None,
        last_refresh=state.last_refresh,
        sent_at=sending.at if sending and sending.link == grant.fingerprint else None,
    )


def _unheard(_event: Event, /) -> None:
    """Nothing happens that anybody would have to be told."""
