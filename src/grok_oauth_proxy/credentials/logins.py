"""Which login is used, where there may be several: the proxy's own, and Hermes'.

Law: the one in use stays in use until it is dead; then the first living one serves. A login that ranks before
it comes back by a new login, or a restart.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from grok_oauth_proxy.credentials.manager import TokenManager
from grok_oauth_proxy.credentials.messages import FELL_BACK
from grok_oauth_proxy.credentials.status import CredentialStatus
from grok_oauth_proxy.credentials.token import Token
from grok_oauth_proxy.errors import CredentialsUnavailable, StoreProblem
from grok_oauth_proxy.events import LoginChanged, Observer, RefreshFailed

_LOGGED_OUT: Final = ("missing", "no_tokens")
_LOOK_AGAIN: Final = 1.0
"""Seconds in which requests that find the login dead look for another one once."""


class Logins:
    """A manager for each place where a login may live, the preferred first. Callers say `await x.get()`."""

    def __init__(self, managers: Sequence[TokenManager], observer: Observer) -> None:
        self._managers = managers
        self._observer = observer
        self._active = managers[0]
        self._settling = asyncio.Lock()
        self._looked_at = -math.inf

    def __repr__(self) -> str:
        return f"Logins(active={self._active!r}, of={len(self._managers)})"

    async def start(self) -> None:
        """Load the first living login, else the first dead one; raise `StoreProblem` when there is none."""
        problem, dead = None, None
        for manager in self._managers:
            try:
                await manager.start()
            except StoreProblem as missing:
                problem = missing
                continue
            if not manager.dead:
                self._active = manager
                if self._passed_over:
                    self._observer(LoginChanged(manager.source, FELL_BACK))
                return
            dead = dead or manager
        if dead is None:
            raise problem or AssertionError("there is a place at least")
        dead.check_client()
        self._active = dead

    async def get(self, *, refused: Token | None = None, at_least: float = 0.0) -> Token:
        """See `TokenManager.get`; where a login has died meanwhile, the token is another one's."""
        active = self._active
        try:
            return await active.get(refused=refused, at_least=at_least)
        except CredentialsUnavailable as error:
            _forget_if_logged_out(active, error.code)
            if self._active is active and not (active.dead and await self._settle()):
                raise
        return await self._active.get(at_least=at_least)

    def note_refused(self, token: Token, *, everywhere: bool = False) -> None:
        """See `TokensAtHand.note_refused`."""
        self._active.at_hand.note_refused(token, everywhere=everywhere)

    def note_accepted(self) -> None:
        """See `TokensAtHand.note_accepted`."""
        self._active.at_hand.note_accepted()

    def seconds_until_due(self) -> float:
        """See `TokenManager.seconds_until_due`."""
        return self._active.seconds_until_due()

    async def wait_for_change(self, timeout: float) -> None:
        """See `TokenManager.wait_for_change`."""
        await self._active.wait_for_change(timeout)

    async def refresh_ahead(self) -> None:
        """See `TokenManager.refresh_ahead`."""
        await self._active.refresh_ahead()
        self._looked_at = -math.inf  # its own pace is slow enough
        await self._settle()

    async def reload(self, manager: TokenManager) -> bool:
        """The place that `manager` looks after has changed: see `TokenManager.reload`.

        A new login there is used if the place is preferred, or if the login in use is dead.
        """
        if not self._ranks_first(manager) and manager is not self._active and not self._active.dead:
            return True
        try:
            settled = await manager.reload()
        except StoreProblem as problem:
            _forget_if_logged_out(manager, problem.code)
            await self._settle()
            raise
        await self._settle(changed=manager)
        return settled

    def status(self) -> CredentialStatus:
        """See `TokenManager.status`; a login that was passed over is told as a problem."""
        status = self._active.status()
        if self._passed_over and status.problem is None:
            return replace(status, problem=RefreshFailed("own_login_dead", FELL_BACK, terminal=False))
        return status

    async def aclose(self) -> None:
        """See `TokenManager.aclose`."""
        for manager in self._managers:
            await manager.aclose()

    @property
    def _passed_over(self) -> bool:
        """A login that ranks before the one in use is there, and dead."""
        before = self._managers[: self._managers.index(self._active)]
        return any(manager.holds_login for manager in before)

    def _ranks_first(self, manager: TokenManager) -> bool:
        return self._managers.index(manager) < self._managers.index(self._active)

    async def _settle(self, changed: TokenManager | None = None) -> bool:
        """Use what the law says; True when there is a living login now. `changed`: may hold a new one."""
        async with self._settling:
            before = self._active
            if changed is not None and not changed.dead and (self._ranks_first(changed) or before.dead):
                self._use(changed)
            elif before.dead and (changed or self._may_look()):
                await self._look_elsewhere(before)
            return self._active is not before or not before.dead

    def _may_look(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < _LOOK_AGAIN:
            return False
        self._looked_at = now
        return True

    async def _look_elsewhere(self, lost: TokenManager) -> None:
        for manager in self._managers:
            if manager is lost and lost.holds_login:
                continue
            try:
                await manager.reload()
            except StoreProblem:
                continue
            if not manager.dead and (lost.dead or manager is lost):  # somebody may have signed in meanwhile
                self._use(manager)
                return

    def _use(self, manager: TokenManager) -> None:
        before, self._active = self._active, manager
        if before is not manager:
            self._observer(LoginChanged(manager.source, FELL_BACK if self._passed_over else None))
            before.wake()


def _forget_if_logged_out(manager: TokenManager, code: str) -> None:
    """The own login was ended on purpose; Hermes' store may be away for a moment only."""
    if manager.source == "own" and code in _LOGGED_OUT:
        manager.forget()
