"""When a refused token counts as refused everywhere."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.token import Token
from grok_oauth_proxy.events import Event
from grok_oauth_proxy.proxy.fallback import KeyFallback
from grok_oauth_proxy.proxy.recovery import Recovery
from grok_oauth_proxy.proxy.rejections import STALE_TOKEN
from grok_oauth_proxy.proxy.retry import Attempt

pytestmark = pytest.mark.anyio

FIRST, NEXT = (Token(SecretStr(name), issued_at=0.0, expires_at=None) for name in ("first", "next"))


class Tokens:
    """A login whose token is renewed whenever it is refused; keeps what it is told."""

    def __init__(self) -> None:
        self.everywhere: list[bool] = []
        self.accepted = 0

    async def get(self, *, refused: Token | None = None, at_least: float = 0.0) -> Token:  # noqa: ARG002
        return NEXT if refused else FIRST

    def note_refused(self, _token: Token, *, everywhere: bool = False) -> None:
        self.everywhere.append(everywhere)

    def note_accepted(self) -> None:
        self.accepted += 1


def _hear(_event: Event) -> None:
    """Nobody listens."""


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.tokens = Tokens()
        clock = Clock(wall=lambda: self.now, monotonic=lambda: self.now)
        fallback = KeyFallback(None, _hear)
        self.recovery = Recovery(self.tokens, fallback, _hear, clock, replay_limit=0)

    async def refuse(self, path: bytes) -> bool:
        """The API refuses the token on this path; whether that counts as everywhere."""
        await self.recovery.step(FIRST, Attempt("POST"), STALE_TOKEN, path=path, can_resend=True)
        return self.tokens.everywhere[-1]


@pytest.fixture
def world() -> World:
    return World()


async def test_one_path(world: World) -> None:
    """One path that never took a token says nothing about the others, until it has refused for a minute."""
    assert not await world.refuse(b"/v1/a")
    world.now += 59
    assert not await world.refuse(b"/v1/a")
    world.now += 2
    assert await world.refuse(b"/v1/a")


async def test_two_paths(world: World) -> None:
    """Two paths that refuse are enough."""
    assert not await world.refuse(b"/v1/a")
    assert await world.refuse(b"/v1/b")


async def test_path_that_took_tokens(world: World) -> None:
    """A path that took tokens before and refuses now is enough."""
    world.recovery.note_accepted(b"/v1/a")
    assert await world.refuse(b"/v1/a")


async def test_accepted_after_all(world: World) -> None:
    """When the API takes a token on any path, what was refused before counts no longer, which is told."""
    await world.refuse(b"/v1/a")
    world.recovery.note_accepted(b"/v1/c")
    assert world.tokens.accepted == 1
    assert not await world.refuse(b"/v1/b")
