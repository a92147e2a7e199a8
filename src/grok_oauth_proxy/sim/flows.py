"""The two ways to log in: the device flow (RFC 8628) and the code flow with PKCE (RFC 7636).

Nothing here reads a clock; `now` is a Unix time in seconds handed in by the caller.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Literal

from grok_oauth_proxy.sim import jwt
from grok_oauth_proxy.sim.grants import DeniedError, Ledger, Pair

CODE_LIFETIME = 600.0
SLOW_DOWN_STEP = 5.0  # RFC 8628 §3.5
POLL_TOLERANCE = 0.05  # a client that slept exactly one interval may look a little early from here
USER_CODE_ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"  # RFC 8628 §6.1

Decision = Literal["pending", "approved", "denied"]


@dataclass
class DeviceCode:
    """One device login in progress; `interval` is in seconds and grows with every slow_down."""

    device_code: str
    user_code: str
    client_id: str
    scope: str
    expires_at: float
    interval: float
    decision: Decision
    polled_at: float | None = None


@dataclass
class DeviceFlow:
    """Device codes waiting for a person, and those already used."""

    ledger: Ledger
    _codes: dict[str, DeviceCode] = field(default_factory=dict)

    def start(
        self, client_id: str, scope: str, now: float, *, expires_in: float, interval: float, approved: bool
    ) -> DeviceCode:
        """A new pair of codes."""
        letters = "".join(secrets.choice(USER_CODE_ALPHABET) for _ in range(8))
        code = DeviceCode(
            device_code=secrets.token_urlsafe(32),
            user_code=f"{letters[:4]}-{letters[4:]}",
            client_id=client_id,
            scope=scope,
            expires_at=now + expires_in,
            interval=interval,
            decision="approved" if approved else "pending",
        )
        self._codes[code.device_code] = code
        return code

    def decide(self, user_code: str, decision: Decision) -> bool:
        """Record the person's answer; False for an unknown code. Case and hyphens do not matter."""
        wanted = _plain(user_code)
        for code in self._codes.values():
            if _plain(code.user_code) == wanted:
                code.decision = decision
                return True
        return False

    def poll(self, device_code: str, client_id: str, now: float, lifetime: float) -> Pair:
        """The tokens, once approved. Raises DeniedError with the codes of RFC 8628 §3.5 until then."""
        code = self._codes.get(device_code)
        if code is None:
            raise DeniedError("invalid_grant", "The device code is unknown or was used")
        if code.client_id != client_id:
            raise DeniedError("invalid_client", "The client does not own this device code")
        self._check_pace(code, now)
        if now >= code.expires_at:
            raise DeniedError("expired_token", "The device code has expired")
        if code.decision == "denied":
            raise DeniedError("access_denied", "The person refused the login")
        if code.decision == "pending":
            raise DeniedError("authorization_pending", "The person has not answered yet")
        del self._codes[device_code]
        return self.ledger.login(client_id, now, lifetime, scope=code.scope)

    @staticmethod
    def _check_pace(code: DeviceCode, now: float) -> None:
        last, code.polled_at = code.polled_at, now
        if last is not None and now - last + POLL_TOLERANCE < code.interval:
            code.interval += SLOW_DOWN_STEP
            raise DeniedError("slow_down", "Polling faster than the interval allows")


@dataclass
class AuthorizationCode:
    """A code handed to the redirect URI and what must be shown to redeem it."""

    client_id: str
    redirect_uri: str
    challenge: str
    scope: str
    nonce: str
    issued_at: float
    redeemed: Pair | None = None


@dataclass
class CodeFlow:
    """Authorization codes, each good once."""

    ledger: Ledger
    _codes: dict[str, AuthorizationCode] = field(default_factory=dict)

    def issue(self, code: AuthorizationCode) -> str:
        """The code string that redeems `code`."""
        value = secrets.token_urlsafe(32)
        self._codes[value] = code
        return value

    def redeem(
        self, value: str, client_id: str, redirect_uri: str, verifier: str, now: float, lifetime: float
    ) -> Pair:
        """The tokens. Raises DeniedError; a second use also revokes the grant (RFC 6749 §4.1.2)."""
        code = self._codes.get(value)
        if code is None:
            raise DeniedError("invalid_grant", "The authorization code is unknown")
        if code.client_id != client_id:
            raise DeniedError("invalid_client", "The client does not own this authorization code")
        if code.redeemed is not None:
            self.ledger.revoke_grant_of(code.redeemed)
            raise DeniedError("invalid_grant", "The authorization code was used")
        if now >= code.issued_at + CODE_LIFETIME:
            raise DeniedError("invalid_grant", "The authorization code has expired")
        if code.redirect_uri != redirect_uri:
            raise DeniedError("invalid_grant", "redirect_uri differs from the authorization request")
        if s256(verifier) != code.challenge:
            raise DeniedError("invalid_grant", "code_verifier does not match the challenge")
        code.redeemed = self.ledger.login(client_id, now, lifetime, scope=code.scope, nonce=code.nonce)
        return code.redeemed


def s256(verifier: str) -> str:
    """RFC 7636 §4.2: BASE64URL(SHA256(ASCII(verifier)))."""
    return jwt.segment(hashlib.sha256(verifier.encode("ascii", "replace")).digest())


def _plain(user_code: str) -> str:
    return user_code.replace("-", "").strip().upper()
