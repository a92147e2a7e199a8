"""Grants, their chains of refresh tokens, and the access tokens they produced.

The law: every refresh token is good once. Presenting one that was already rotated revokes the whole grant,
unless it was the latest to be rotated and the grace period is still running.
Nothing here reads a clock; `now` is a Unix time in seconds handed in by the caller.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from grok_oauth_proxy.sim import jwt

DEFAULT_CLIENT = "sim-client-0001"
DEFAULT_SCOPE = "openid profile email offline_access grok-cli:access api:access"
REVOKED = "Refresh token has been revoked"


class DeniedError(Exception):
    """A token request the server refuses (RFC 6749 §5.2): `error` is the code, `description` the sentence."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(f"{error}: {description}")
        self.error = error
        self.description = description


@dataclass
class Counters:
    """What happened since the start; `open_requests` and `open_token_requests` alone go down again."""

    refreshes: int = 0
    token_requests: int = 0
    reuses: int = 0
    revocations: int = 0
    logins: int = 0
    api_requests: int = 0
    stale_rejections: int = 0
    aborted_requests: int = 0
    open_requests: int = 0
    open_token_requests: int = 0
    websockets: int = 0


@dataclass(frozen=True)
class Principal:
    """Who a grant speaks for. A team's principal must be named again at every refresh."""

    type: str = "User"
    id: str = ""

    @property
    def is_team(self) -> bool:
        return self.type.lower() == "team"


@dataclass(frozen=True)
class Grant:
    """One login of one client."""

    client_id: str
    principal: Principal
    scope: str = DEFAULT_SCOPE
    sub: str = "user-sim-0001"
    team_id: str = "team-sim-0001"
    tier: int = 1
    nonce: str | None = None
    id: str = field(default_factory=lambda: f"grant-{secrets.token_hex(8)}")


@dataclass(frozen=True)
class Pair:
    """What a token request yields; `expires_in` in seconds, `refresh_token` None for keep the old one."""

    grant: Grant
    access_token: str
    refresh_token: str | None
    id_token: str
    expires_in: float


@dataclass
class Access:
    """An access token the server issued; `serial` counts from 1 in order of issue."""

    grant: Grant
    serial: int
    issued_at: float
    expires_at: float


@dataclass
class _Link:
    """One refresh token in its grant's chain."""

    grant: Grant
    rotated_at: float = 0.0
    successor: Pair | None = None


@dataclass
class Ledger:
    """All the server remembers about tokens."""

    issuer: str
    counters: Counters = field(default_factory=Counters)
    _live: dict[str, Grant] = field(default_factory=dict)
    _links: dict[str, _Link] = field(default_factory=dict)
    _access: dict[str, Access] = field(default_factory=dict)

    def login(
        self,
        client_id: str,
        now: float,
        lifetime: float,
        *,
        principal: Principal | None = None,
        scope: str = "",
        nonce: str | None = None,
    ) -> Pair:
        """A new grant and its first pair of tokens."""
        principal = principal or Principal()
        if not principal.id:
            principal = Principal(principal.type, "team-sim-0001" if principal.is_team else "user-sim-0001")
        grant = Grant(client_id, principal, scope or DEFAULT_SCOPE, nonce=nonce)
        self._live[grant.id] = grant
        self.counters.logins += 1
        return self._issue(grant, now, lifetime)

    def refresh(
        self,
        token: str,
        client_id: str,
        now: float,
        lifetime: float,
        *,
        grace: float = 0.0,
        principal: Principal | None = None,
        rotate: bool = True,
    ) -> Pair:
        """Rotate `token`. Raises DeniedError; `principal` None means that none was demanded.

        With `rotate` false the presented token stays the live one and the pair carries no refresh token.
        """
        link = self._links.get(token)
        if link is None:
            raise DeniedError("invalid_grant", REVOKED)
        if link.grant.client_id != client_id:
            raise DeniedError("invalid_client", "The client does not own this refresh token")
        if link.successor is not None:
            return self._replayed(link, now, grace)
        if link.grant.id not in self._live:
            raise DeniedError("invalid_grant", REVOKED)
        if principal is not None and link.grant.principal.is_team and principal != link.grant.principal:
            raise DeniedError(
                "invalid_request", "principal_type and principal_id must name the grant's principal"
            )
        self.counters.refreshes += 1
        pair = self._issue(link.grant, now, lifetime, with_refresh=rotate)
        if rotate:
            link.successor, link.rotated_at = pair, now
        return pair

    def _replayed(self, link: _Link, now: float, grace: float) -> Pair:
        successor = link.successor
        next_link = self._links.get(successor.refresh_token or "") if successor else None
        latest = next_link is not None and next_link.successor is None
        live = link.grant.id in self._live
        if successor and live and latest and now - link.rotated_at < grace:
            return successor
        self.counters.reuses += 1
        self._revoke(link.grant)
        raise DeniedError("invalid_grant", REVOKED)

    def _issue(self, grant: Grant, now: float, lifetime: float, *, with_refresh: bool = True) -> Pair:
        access_token = self._mint_access(grant, now, lifetime)
        refresh_token = None
        if with_refresh:
            refresh_token = secrets.token_urlsafe(48)
            self._links[refresh_token] = _Link(grant)
        return Pair(grant, access_token, refresh_token, self._mint_id(grant, now, lifetime), lifetime)

    def _mint_access(self, grant: Grant, now: float, lifetime: float) -> str:
        claims = {
            "iss": self.issuer,
            "sub": grant.sub,
            "aud": grant.client_id,
            "client_id": grant.client_id,
            "scope": grant.scope,
            "exp": int(now + lifetime),
            "iat": int(now),
            "jti": secrets.token_hex(16),
            "principal_type": grant.principal.type,
            "principal_id": grant.principal.id,
            "team_id": grant.team_id,
            "tier": grant.tier,
        }
        token = jwt.mint(claims)
        self._access[token] = Access(grant, len(self._access) + 1, now, now + lifetime)
        return token

    def _mint_id(self, grant: Grant, now: float, lifetime: float) -> str:
        claims: dict[str, object] = {
            "iss": self.issuer,
            "sub": grant.sub,
            "aud": grant.client_id,
            "exp": int(now + lifetime),
            "iat": int(now),
            "email": "pilot@example.com",
            "email_verified": True,
            "name": "Sim Pilot",
        }
        if grant.nonce is not None:
            claims["nonce"] = grant.nonce
        return jwt.mint(claims)

    def access(self, token: str) -> Access | None:
        """The record of an access token ever issued, whatever its state."""
        return self._access.get(token)

    def accepts(self, token: str, now: float, edge_lag: float = 0.0) -> bool:
        """Whether the edge takes `token`: unexpired, unrevoked, and at least `edge_lag` seconds old."""
        access = self._access.get(token)
        if access is None or access.grant.id not in self._live:
            return False
        return access.issued_at + edge_lag <= now < access.expires_at

    def revoke_token(self, token: str) -> bool:
        """Revoke the grant behind a refresh or access token (RFC 7009); False for a token never issued."""
        holder = self._links.get(token) or self._access.get(token)
        if holder is None:
            return False
        self._revoke(holder.grant)
        return True

    def revoke_grant_of(self, pair: Pair) -> None:
        """Revoke the grant that yielded `pair`."""
        self._revoke(pair.grant)

    def revoke_all(self) -> int:
        """Revoke every live grant and say how many there were."""
        grants = list(self._live.values())
        for grant in grants:
            self._revoke(grant)
        return len(grants)

    def _revoke(self, grant: Grant) -> None:
        if self._live.pop(grant.id, None) is not None:
            self.counters.revocations += 1

    def expire_access(self) -> int:
        """Every access token issued so far is refused from now on; returns how many were."""
        for access in self._access.values():
            access.expires_at = 0.0
        return len(self._access)
