"""What a person is told when there is no token: the cause and the next step, one sentence each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Wording:
    """How messages name the place where a login lives, who refreshes it, and the way to sign in again."""

    store: str
    owner: str
    sign_in: str

    def say(self, message: str, **facts: object) -> str:
        """Fill one of the messages of this file in."""
        return message.format(store=self.store, Store=_capital(self.store), sign_in=self.sign_in, **facts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


HERMES: Final = Wording(
    store="Hermes' store",
    owner="The login is Hermes': it is shared in place, and refreshed by whoever needs it first.",
    sign_in="`hermes auth add xai-oauth`",
)
OWN: Final = Wording(
    store="the proxy's own login file",
    owner="The login is the proxy's own: nobody else refreshes it.",
    sign_in="`grok-oauth-proxy login`",
)

NOBODY: Final = "Nobody is signed in."
KEY_OWNER: Final = "The API key in XAI_API_KEY is used, billed separately from a subscription."
BY_SOURCE: Final = {"own": OWN, "hermes": HERMES}

BLOCKED: Final = {
    "invalid_grant": (
        "Your Grok login has been revoked or has expired. Sign in again with {sign_in}; "
        "the proxy picks the new login up by itself."
    ),
    "invalid_client": (
        "The authorization server does not know this client id. Unset XAI_OAUTH_CLIENT_ID if it is set, or "
        "sign in again with {sign_in}."
    ),
    "not_entitled": (
        "The authorization server says this account may not use the API. Signing in again will not help: "
        "check that the subscription includes API access, then restart the proxy; or use an API key from the "
        "xAI console (billed separately): set XAI_API_KEY and API_KEY_FALLBACK=entitlement."
    ),
    "no_client_id": (
        "The login in {store} does not say which client it belongs to. Set XAI_OAUTH_CLIENT_ID, or "
        "sign in again with {sign_in}."
    ),
}
"""Verdicts that stand until the store changes."""

ANSWER_LOST: Final = (
    "The answer to an earlier refresh was lost, and the authorization server does not take its refresh token "
    "again, so this login is over. Sign in again with {sign_in}; the proxy picks the new login up by itself."
)

TRANSIENT: Final = (
    "The access token could not be refreshed ({reason}); trying again by itself. If this lasts, check the "
    "network and https://status.x.ai."
)

WAY_OUT: Final = {
    "certificate": (
        "What answers for the authorization server has a certificate that this machine does not trust, so "
        "the access token was not refreshed. If your network inspects TLS, name the certificate of "
        "its authority in SSL_CERT_FILE and restart the proxy."
    ),
    "egress_refused": (
        "The egress proxy does not let the refresh of the access token through. Correct HTTPS_PROXY or "
        "ALL_PROXY and the login in it, and restart the proxy."
    ),
}
"""What stands between this machine and the authorization server, where that is known."""

DOUBTFUL: Final = (
    "The answer to the last refresh was lost, so the refresh token may be spent; sending it again now could "
    "end the login. The access token is used up first. If the API no longer takes that, sign in again with "
    "{sign_in}."
)

EXPIRED_REPLY: Final = (
    "The authorization server gave an access token that has already expired. Check this machine's clock; "
    "trying again by itself."
)

UNSAVED: Final = (
    "The renewed login could not be written to disk, so it is not used yet. Free some space or repair the "
    "permissions of the state folder and of {store}; saving is tried again by itself."
)

NO_ROOM: Final = (
    "The access token is not refreshed, because {store} could not take the renewed login. Free some "
    "space or repair the permissions of its folder; trying again by itself."
)

NOT_NOTED: Final = (
    "The access token is not refreshed, because the proxy's state file could not be written, and a crash "
    "during the refresh could cost the login. Free some space or repair the permissions of its folder; "
    "trying again by itself."
)

LOST: Final = (
    "The renewed login could not be written before the end. {Store} may hold a spent token: sign in "
    "again with {sign_in} before it is used."
)

READ_ONLY: Final = (
    "{path} cannot be written, so its login is used but never refreshed here: a rotated token that is not "
    "written back would cost the login. Make the file, its folder and the lock beside it writable."
)

BEHIND: Final = (
    "{Store} could not be written after a refresh and still holds a spent token. Free some space or "
    "repair its permissions; until then do not start Hermes. Writing is tried again by itself."
)

NOT_WRITTEN: Final = "{Store} was not written: {reason}."

FELL_BACK: Final = (
    "The proxy's own login is no longer good, so Hermes' login is used instead. Run `grok-oauth-proxy login` "
    "to have one of its own again."
)

LOGGED_OUT: Final = (
    "Nobody is signed in any more: {store} was emptied. Sign in with {sign_in}; the proxy picks the new "
    "login up by itself."
)

KEY_REFUSED: Final = (
    "The Grok API does not accept XAI_API_KEY. Set it to a key from the xAI console and restart the proxy, "
    "or set CREDENTIAL_SOURCE to auto to use a Grok login."
)
