"""`grok-oauth-proxy logout`: end the proxy's own login, at xAI and here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from grok_oauth_proxy.credentials.own import OwnStore
    from grok_oauth_proxy.settings import Settings


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def logout(yes: bool) -> None:
    """End the proxy's own login: at xAI, where that is offered, and on this machine.

    Hermes' login is never touched.

    \b
    Exit codes: 0 it is ended, or there was none
                1 it could not be ended at xAI
                2 a setting is wrong
                3 login.json cannot be read or written
                130 you did not want to
    """
    import asyncio

    from grok_oauth_proxy.credentials.own import OwnStore
    from grok_oauth_proxy.settings import load_settings

    settings = load_settings()
    store = OwnStore.beside(settings.grok_proxy_auth_state)
    if not store.is_there():
        click.echo(_NONE)
        return
    click.echo(
        f"This ends the proxy's own login at xAI and empties {store.file.path}. Hermes' is not touched."
    )
    if not yes:
        click.confirm("Go on?", abort=True)
    asyncio.run(_log_out(settings))


async def _log_out(settings: Settings) -> None:
    from grok_oauth_proxy.clock import Clock
    from grok_oauth_proxy.control_plane import authorization_server, control_plane
    from grok_oauth_proxy.credentials.own import OwnStore
    from grok_oauth_proxy.credentials.sign_in import revoke
    from grok_oauth_proxy.egress import tls_context
    from grok_oauth_proxy.errors import SignInFailed, StoreProblem

    store = OwnStore.beside(settings.grok_proxy_auth_state)
    async with (
        control_plane(settings, tls_context()) as http,
        # A running proxy does not rotate what is about to be revoked.
        store.lock(),
    ):
        _rehearse(store)
        if (kept := store.file.set_aside_if_corrupt()) is not None:
            _empty(store, "The damaged file is kept aside")
            raise SignInFailed(
                f"{kept} The login in it was not ended at xAI and may live on: end it in your xAI account.",
                code="corrupt",
            )
        try:
            grant, client_id = store.holder()
        except StoreProblem as problem:
            if problem.code not in ("no_tokens", "missing"):
                raise
            click.echo(_NONE)  # somebody was faster
            return
        client_id = client_id or settings.xai_oauth_client_id
        try:
            outcome = await revoke(authorization_server(settings, http, Clock()), grant, client_id or "")
        except SignInFailed as failure:
            raise SignInFailed(
                f"The login could not be ended at xAI ({failure.code}); nothing was removed. Try again, "
                f"or remove {store.file.path} yourself, and end the login in your xAI account.",
                code=failure.code,
            ) from None
        _empty(store, _ENDED[outcome])
    click.echo(f"✓ {_ENDED[outcome]}. No login of the proxy's own is kept here any more.")


def _rehearse(store: OwnStore) -> None:
    """Before anything is ended that could not be taken away here."""
    from grok_oauth_proxy.errors import StoreProblem

    try:
        store.rehearse()
    except OSError as error:
        raise StoreProblem(
            f"{store.file.path} cannot be written: {error.strerror}. Nothing was ended. Make its folder "
            "writable, free some space.",
            code="state_unusable",
        ) from None


def _empty(store: OwnStore, ended: str) -> None:
    """`ended`: what has been done before, for the person who sees this fail."""
    from grok_oauth_proxy.errors import StoreProblem

    try:
        store.clear()
    except OSError as error:
        raise StoreProblem(
            f"{ended}, but {store.file.path} could not be written: {error.strerror}. Remove it yourself.",
            code="state_unusable",
        ) from None


_NONE = "There is no login of the proxy's own. Hermes' login, if any, is left alone."
_ENDED = {
    "revoked": "The login is ended at xAI",
    "not_offered": "xAI does not offer to end a login from here (end it in your xAI account)",
}
