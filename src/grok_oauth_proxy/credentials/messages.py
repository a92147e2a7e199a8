"""What a person is told when there is no token: the cause and the next step, one sentence each."""

from __future__ import annotations

from typing import Final

BLOCKED: Final = {
    "invalid_grant": (
        "Your Grok login has been revoked or has expired. Sign in again with `hermes auth add xai-oauth`; "
        "the proxy picks the new login up by itself."
    ),
    "invalid_client": (
        "The authorization server does not know this client id. Unset XAI_OAUTH_CLIENT_ID if it is set, or "
        "sign in again with `hermes auth add xai-oauth`."
    ),
    "not_entitled": (
        "The authorization server says this account may not use the API. Signing in again will not help: "
        "check that the subscription includes API access, then restart the proxy; or use an API key from the "
        "xAI console (billed separately)."
    ),
    "no_client_id": (
        "The login in Hermes' store does not say which client it belongs to. Set XAI_OAUTH_CLIENT_ID, or "
        "sign in again with `hermes auth add xai-oauth`."
    ),
}
"""Verdicts that stand until the store changes."""

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
    "`hermes auth add xai-oauth`."
)

EXPIRED_REPLY: Final = (
    "The authorization server gave an access token that has already expired. Check this machine's clock; "
    "trying again by itself."
)

UNSAVED: Final = (
    "The renewed login could not be written to disk, so it is not used yet. Free some space or repair the "
    "permissions of the state folder and of Hermes' store; saving is tried again by itself."
)

NO_ROOM: Final = (
    "The access token is not refreshed, because Hermes' store could not take the renewed login. Free some "
    "space or repair the permissions of its folder; trying again by itself."
)

NOT_NOTED: Final = (
    "The access token is not refreshed, because the proxy's state file could not be written, and a crash "
    "during the refresh could cost the login. Free some space or repair the permissions of its folder; "
    "trying again by itself."
)

LOST: Final = (
    "The renewed login could not be written before the end. Hermes' store may hold a spent token: sign in "
    "again with `hermes auth add xai-oauth` before Hermes uses it."
)

READ_ONLY: Final = (
    "{store} cannot be written, so its login is used but never refreshed here: a rotated token that is not "
    "written back would cost Hermes the login. Make the file, its folder and auth.lock writable."
)

BEHIND: Final = (
    "Hermes' store could not be written after a refresh and still holds a spent token. Free some space or "
    "repair its permissions; until then do not start Hermes. Writing is tried again by itself."
)
