"""Which OAuth client a new login is made for. The program ships none: a login made before names it."""

from __future__ import annotations

from contextlib import suppress

from grok_oauth_proxy.credentials.hermes import HermesStore
from grok_oauth_proxy.credentials.own import OwnStore
from grok_oauth_proxy.credentials.state import StateFile
from grok_oauth_proxy.errors import ConfigurationError, StoreProblem
from grok_oauth_proxy.settings import Settings


def known_client_id(settings: Settings) -> str:
    """XAI_OAUTH_CLIENT_ID, else what an earlier login says: the proxy's own, what it remembers, Hermes'.

    Raises `ConfigurationError` when nothing names one.
    """
    if settings.xai_oauth_client_id:
        return settings.xai_oauth_client_id
    own = OwnStore.beside(settings.grok_proxy_auth_state).file
    for file in (own, StateFile(settings.grok_proxy_auth_state)):
        with suppress(StoreProblem):
            state = file.load()
            if state and (known := state.client_id or (state.grant and state.grant.token.client_id)):
                return known
    with suppress(StoreProblem):
        for grant in HermesStore(settings.hermes_stores).read():
            if grant.token.client_id:
                return grant.token.client_id
    raise ConfigurationError(
        "No OAuth client id is known yet. Set XAI_OAUTH_CLIENT_ID, or bring a login along that names it: "
        "`hermes auth add xai-oauth` here, or `grok-oauth-proxy import` of one exported elsewhere."
    )
