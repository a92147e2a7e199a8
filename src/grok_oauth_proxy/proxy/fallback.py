"""The way around an account that may not use the API: an API key, for those who switched that on.

Law: only a refusal for entitlement is answered with the key, once a request: it is billed separately.
"""

from __future__ import annotations

from pydantic import SecretStr

from grok_oauth_proxy.credentials.api_key import key_token
from grok_oauth_proxy.credentials.token import Token
from grok_oauth_proxy.errors import CredentialsUnavailable
from grok_oauth_proxy.events import KeyUsedInstead, Observer


class KeyFallback:
    """`key` is None where it is switched off."""

    def __init__(self, key: SecretStr | None, observer: Observer) -> None:
        self._token = key_token(key) if key else None
        self._observer = observer

    def is_in(self, token: Token) -> bool:
        """Whether the token is the key, which no refresh renews."""
        return token is self._token

    def for_lack_of_a_token(self, error: CredentialsUnavailable) -> Token | None:
        """The key, where the authorization server says that the account is not entitled."""
        return self._use() if error.code == "not_entitled" else None

    def instead_of(self, refused: Token) -> Token | None:
        """The key, where the API says so of the token."""
        return None if self.is_in(refused) else self._use()

    def _use(self) -> Token | None:
        if self._token is not None:
            self._observer(KeyUsedInstead())
        return self._token
