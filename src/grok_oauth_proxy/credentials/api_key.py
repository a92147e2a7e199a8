"""An API key from the xAI console in the place of a login: it is never refreshed."""

from __future__ import annotations

import asyncio
import math

from pydantic import SecretStr

from grok_oauth_proxy.credentials.messages import KEY_OWNER, KEY_REFUSED
from grok_oauth_proxy.credentials.status import CredentialStatus
from grok_oauth_proxy.credentials.token import Token
from grok_oauth_proxy.errors import CredentialsUnavailable
from grok_oauth_proxy.events import Observer, RefreshFailed


def key_token(key: SecretStr) -> Token:
    """The key as what is sent with a request; it never expires."""
    return Token(bearer=key, issued_at=0.0, expires_at=None)


class ApiKey:
    """What `logins.Logins` is for logins. Billed separately from a subscription."""

    def __init__(self, key: SecretStr, observer: Observer) -> None:
        self._token = key_token(key)
        self._observer = observer
        self._problem: RefreshFailed | None = None

    async def start(self) -> None:
        """There is nothing to load."""

    async def get(self, *, refused: Token | None = None, at_least: float = 0.0) -> Token:  # noqa: ARG002
        """The key; raise `CredentialsUnavailable` to whom the API refused it."""
        if refused is None:
            return self._token
        if self._problem is None:
            self._problem = RefreshFailed("api_key_refused", KEY_REFUSED, terminal=True)
            self._observer(self._problem)
        raise CredentialsUnavailable(KEY_REFUSED, code="api_key_refused")

    def note_refused(self, token: Token, *, everywhere: bool = False) -> None:
        """`get` is asked again with what was refused."""

    def note_accepted(self) -> None:
        """The API takes the key again."""
        self._problem = None

    def seconds_until_due(self) -> float:
        """Never."""
        return math.inf

    async def wait_for_change(self, timeout: float) -> None:
        """Nothing changes."""
        await asyncio.sleep(timeout)

    async def refresh_ahead(self) -> None:
        """There is nothing to refresh."""

    def status(self) -> CredentialStatus:
        """See `TokenManager.status`."""
        return CredentialStatus(
            source="api-key",
            owner=KEY_OWNER,
            token_endpoint=None,
            expires_at=None,
            seconds_to_expiry=None,
            usable=self._problem is None,
            problem=self._problem,
            last_refresh={},
            successes=0,
            failures=0,
        )

    async def aclose(self) -> None:
        """Nothing is under way."""
