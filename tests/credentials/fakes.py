"""What stands in for time, the authorization server and a failing disk, and a grant to play with."""

from __future__ import annotations

import base64
import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.chain import Chain
from grok_oauth_proxy.credentials.files import LOCK_TIMEOUT
from grok_oauth_proxy.credentials.hermes import HermesStore
from grok_oauth_proxy.credentials.manager import TokenManager
from grok_oauth_proxy.credentials.messages import Wording
from grok_oauth_proxy.credentials.oauth import Outcome, Refreshed
from grok_oauth_proxy.credentials.state import State, StateFile
from grok_oauth_proxy.credentials.token import Grant, fresh_token, read_token
from grok_oauth_proxy.errors import StoreProblem
from grok_oauth_proxy.events import Event

NOW = 1_800_000_000.0
HOUR = 3600.0
LIFETIME = 6 * HOUR
CLIENT = "client-1"

Json = dict[str, Any]


def encoded(payload: object) -> str:
    """A segment of a JWT."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def jwt(**claims: object) -> str:
    """An access token with these claims."""
    return f"{encoded({'alg': 'ES256'})}.{encoded(claims)}.c2ln"


def bearer(
    name: str,
    *,
    issued: float = NOW,
    lifetime: float = LIFETIME,
    client: str | None = CLIENT,
    account: str | None = None,
) -> str:
    """The access token of the link `name`."""
    claims = {"client_id": client, "sub": account}
    known = {claim: value for claim, value in claims.items() if value}
    return jwt(jti=name, iat=issued, exp=issued + lifetime, **known)


def link(name: str, **claims: Any) -> Grant:
    """The link of a chain whose refresh token is `name`; `claims` as `bearer` takes them."""
    return Grant(token=read_token(bearer(name, **claims)), refresh_token=SecretStr(name))


def expired(name: str) -> Grant:
    """A link whose access token ran out an hour ago."""
    return link(name, issued=NOW - LIFETIME - HOUR)


def name_of(grant: Grant) -> str:
    return grant.refresh_token.get_secret_value()


def stored(grant: Grant) -> Json:
    """The tokens of a grant as Hermes writes them."""
    return {
        "access_token": grant.token.bearer.get_secret_value(),
        "refresh_token": name_of(grant),
        "token_type": "Bearer",
        "expires_in": 21600,
    }


def block(grant: Grant | None) -> Json:
    """`providers["xai-oauth"]`; quarantined without a grant."""
    tokens = stored(grant) if grant else {"token_type": "Bearer"}
    return {"tokens": tokens, "last_refresh": "2026-07-20T12:00:00Z", "auth_mode": "oauth_device_code"}


def entry(grant: Grant, *, source: str = "manual:device_code", **fields: object) -> Json:
    """One entry of `credential_pool["xai-oauth"]`."""
    return {
        "id": "a1b2c3",
        "label": "me",
        "source": source,
        "access_token": grant.token.bearer.get_secret_value(),
        "refresh_token": name_of(grant),
        "request_count": 7,
        **fields,
    }


def store(provider: Json | None = None, *pool: Json) -> Json:
    """An auth.json in which other programs keep things too."""
    return {
        "version": 1,
        "providers": {"nous": {"access_token": "of-another"}} | ({"xai-oauth": provider} if provider else {}),
        "credential_pool": {"openrouter": [{"access_token": "of-another"}], "xai-oauth": list(pool)},
        "active_provider": "nous",
        "unknown": {"key": ["kept", 1, None, 1.5, "ü"]},
    }


@dataclass
class Hands:
    """A clock that moves only when told."""

    wall: float = NOW
    monotonic: float = 1000.0

    @property
    def clock(self) -> Clock:
        return Clock(wall=lambda: self.wall, monotonic=lambda: self.monotonic)

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@dataclass
class Server:
    """What spends refresh tokens: rotates unless told otherwise, and keeps what it was sent.

    `script` holds the outcomes to give first; `gate` is awaited, then `inquiry` called with the grant, before
    the answer. Its clock is `behind` this machine's by so many seconds.
    """

    hands: Hands
    lifetime: float = LIFETIME
    behind: float = 0.0
    sent: list[str] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    script: list[Outcome] = field(default_factory=list)
    inquiry: Callable[[Grant], object] | None = None
    gate: Callable[[], Awaitable[None]] | None = None
    _numbers: count[int] = field(default_factory=lambda: count(1))

    @property
    def token_endpoint(self) -> str:
        return "https://auth.x.ai/oauth2/token"

    async def discover(self) -> None:
        """It is where it always was."""

    async def refresh(self, grant: Grant, client_id: str) -> Outcome:
        self.sent.append(name_of(grant))
        self.clients.append(client_id)
        if self.gate is not None:
            await self.gate()
        if self.inquiry is not None:
            self.inquiry(grant)
        return self.script.pop(0) if self.script else self.rotated(grant)

    def rotated(self, grant: Grant) -> Refreshed:
        name = f"{name_of(grant)}+{next(self._numbers)}"
        access = bearer(name, issued=self.hands.wall - self.behind, lifetime=self.lifetime)
        token = fresh_token(access, expires_in=None, now=self.hands.wall)
        return Refreshed(replace(grant, token=token, refresh_token=SecretStr(name)), rotated=True)


@dataclass
class Source:
    """Hermes' store on a disk that can be full or read-only; `leaving` is awaited after a lock.

    `busy`: the lock cannot be had.
    """

    real: HermesStore
    leaving: Callable[[], Awaitable[None]] | None = None
    full: bool = False
    read_only: bool = False
    busy: bool = False
    failure: Exception = field(
        default_factory=lambda: OSError(errno.ENOSPC, "No space left on device", "auth.json")
    )

    @property
    def name(self) -> str:
        return self.real.name

    @property
    def wording(self) -> Wording:
        return self.real.wording

    @asynccontextmanager
    async def lock(
        self, timeout: float = LOCK_TIMEOUT, *, needless: Callable[[], bool] | None = None
    ) -> AsyncIterator[None]:
        if self.busy:
            raise StoreProblem("Another program has held it.", code="lock_busy")
        async with self.real.lock(timeout, needless=needless):
            yield
        if self.leaving is not None:
            await self.leaving()

    def read(self) -> list[Grant]:
        return self.real.read()

    def rehearse(self) -> None:
        """What fails here fails only when it is written."""

    def write_back(self, old: Grant, new: Grant) -> int:
        holds_it = any(grant.fingerprint == old.fingerprint for grant in self.real.read())
        if holds_it and (self.full or self.read_only):
            raise self.failure
        return self.real.write_back(old, new)

    def unwritable(self) -> Path | None:
        return self.real.paths[0] if self.read_only else None


@dataclass
class World:
    """One machine: Hermes' file, the state file, the server, the time, and what was told."""

    folder: Path
    hands: Hands = field(default_factory=Hands)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.auth = self.folder / ".hermes" / "auth.json"
        self.auth.parent.mkdir(mode=0o700)
        self.state_file = StateFile(self.folder / "grok-oauth-proxy" / "auth_state.json")
        self.state_file.prepare()
        self.source = Source(HermesStore((self.auth,)))
        self.server = Server(self.hands)

    def hold(self, content: Json) -> None:
        """Hermes writes its store."""
        temporary = self.auth.with_name("auth.json.new")
        temporary.write_text(json.dumps(content, indent=2))
        temporary.replace(self.auth)

    def held(self) -> list[str]:
        """The refresh tokens in Hermes' store, most preferred first."""
        return [name_of(grant) for grant in self.source.read()]

    def remember(self, grant: Grant, *, spent: tuple[Grant, ...] = (), dead: tuple[Grant, ...] = ()) -> None:
        """Write the state file as an earlier run left it."""
        state = State(
            source="hermes",
            client_id=grant.token.client_id,
            grant=grant,
            successors={link.fingerprint: grant.fingerprint for link in spent},
            dead={link.fingerprint: "invalid_grant" for link in dead},
        )
        self.state_file.save(state)

    def remembered(self) -> State:
        state = self.state_file.load()
        assert state is not None
        return state

    def take_state_folder_away(self) -> None:
        self.state_file.path.parent.rename(self.folder / "gone")

    def bring_state_folder_back(self) -> None:
        (self.folder / "gone").rename(self.state_file.path.parent)

    def manager(self, *, client_id: str | None = None, window: float = 300.0) -> TokenManager:
        """A process that starts now."""
        chain = Chain(self.source, self.state_file, self.events.append, client_id=client_id)
        return TokenManager(
            chain,
            self.server,
            window=window,
            observer=self.events.append,
            clock=self.hands.clock,
        )

    async def started(self, *, client_id: str | None = None, window: float = 300.0) -> TokenManager:
        tokens = self.manager(client_id=client_id, window=window)
        await tokens.start()
        return tokens
