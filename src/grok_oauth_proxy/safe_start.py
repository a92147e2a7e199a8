"""What is looked at before anything is opened: a start that is not safe is refused at once."""

from __future__ import annotations

import shutil

from grok_oauth_proxy.credentials.client_keys import ClientKey, KeysFile
from grok_oauth_proxy.credentials.own import OwnStore
from grok_oauth_proxy.credentials.state import StateFile
from grok_oauth_proxy.errors import StartRefused, StoreProblem
from grok_oauth_proxy.events import Observer, StoreTrouble
from grok_oauth_proxy.origins import is_loopback
from grok_oauth_proxy.settings import MIN_API_KEY_LENGTH, RELOADED, Settings


def refuse_unsafe_start(settings: Settings) -> None:
    """Raise `StartRefused` for what is known to be wrong before anything is opened."""
    own = settings.credential_source == "auto" and OwnStore.beside(settings.grok_proxy_auth_state).is_there()
    wants_hermes = settings.credential_source == "hermes" or (
        settings.credential_source == "auto" and not own
    )
    if wants_hermes and settings.hermes_cli_required and shutil.which("hermes") is None:
        raise StartRefused(
            "There is no login of the proxy's own, and the Hermes CLI (`hermes`) is not on PATH. Sign in "
            "with `grok-oauth-proxy login`, which needs no Hermes; or install Hermes with `pip install "
            "hermes-agent`; or set HERMES_CLI_REQUIRED=false where only its auth.json is mounted.",
            code="no_hermes_cli",
        )
    keys = _named_keys(settings)
    refuse_open_door(settings)
    if not (is_loopback(settings.proxy_host) or settings.proxy_api_key or keys):
        raise _open_without_key(settings)  # the last one was revoked: nobody could come in


def refuse_open_door(settings: Settings) -> None:
    """Raise `StartRefused` when other machines could come in without a key."""
    if is_loopback(settings.proxy_host):
        return
    key = settings.proxy_api_key.get_secret_value() if settings.proxy_api_key else ""
    # Where there is a file of keys, one of them is demanded, even after the last was revoked.
    if len(key) < MIN_API_KEY_LENGTH and (key or KeysFile(settings.keys_file).stamp() is None):
        raise _open_without_key(settings)


def heeded(current: Settings, wanted: Settings) -> Settings:
    """`current`, with what may change while it runs as `wanted`.

    Raises `StartRefused` for what no start would be allowed with.
    """
    new = current.model_copy(update={name: getattr(wanted, name) for name in RELOADED})
    refuse_open_door(new)
    return new


def _open_without_key(settings: Settings) -> StartRefused:
    return StartRefused(
        f"PROXY_HOST {settings.proxy_host} is open to other machines. Set PROXY_API_KEY to at least "
        f"{MIN_API_KEY_LENGTH} characters, or make a key with `grok-oauth-proxy keys add NAME`; or set "
        "PROXY_HOST to 127.0.0.1.",
        code="open_without_key",
    )


def _named_keys(settings: Settings) -> tuple[ClientKey, ...]:
    """Raises `StoreProblem`; also for a file that was named and is not there: it may be a misspelling."""
    file = KeysFile(settings.keys_file)
    if settings.proxy_api_keys_file is None and file.stamp() is None:
        return ()  # if its folder cannot be used, whoever prepares that says so
    try:
        return file.load()
    except StoreProblem as problem:
        if problem.code != "missing":
            raise
        raise StartRefused(
            f"PROXY_API_KEYS_FILE names {settings.keys_file}, which does not exist. Make the first key with "
            "`grok-oauth-proxy keys add NAME`, or correct the setting.",
            code="no_keys_file",
        ) from None


def prepare_state(settings: Settings, observer: Observer) -> None:
    """Repair the permissions of the state files, and keep damaged ones aside; raises `StoreProblem`."""
    files = [StateFile(settings.grok_proxy_auth_state)]
    if settings.credential_source in ("auto", "own"):
        files.append(OwnStore.beside(settings.grok_proxy_auth_state).file)
    for file in files:
        for repaired in file.prepare():
            observer(StoreTrouble("permissions_repaired", repaired))
        if (kept := file.set_aside_if_corrupt()) is not None:
            observer(StoreTrouble("state_corrupt", kept))
