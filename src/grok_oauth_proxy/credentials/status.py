"""What is shown of the credentials."""

from __future__ import annotations

from dataclasses import dataclass

from grok_oauth_proxy.events import RefreshFailed


@dataclass(frozen=True, slots=True)
class CredentialStatus:
    """What /health and the metrics show. Times are seconds, wall clock; no secret is in it.

    `owner` says in a sentence who refreshes the login; `tier` and `principal_type` are claims of its token.
    """

    source: str
    owner: str
    token_endpoint: str | None
    expires_at: float | None
    seconds_to_expiry: float | None
    usable: bool
    problem: RefreshFailed | None
    last_refresh: dict[str, str | bool | None]
    successes: int
    failures: int
    tier: int | None = None
    principal_type: str | None = None
