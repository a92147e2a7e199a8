"""Checks of the files that hold tokens: what is in them, who can read them, who locks them."""

from __future__ import annotations

import asyncio
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from grok_oauth_proxy.cli.checks.finding import Finding, cause_and_fix, note, of_error, ok, wrong
from grok_oauth_proxy.cli.checks.holders import lock_holder
from grok_oauth_proxy.cli.logins import Login, own_path
from grok_oauth_proxy.credentials.client_keys import KeysFile
from grok_oauth_proxy.credentials.files import locked, read_json
from grok_oauth_proxy.credentials.hermes import PROVIDER, HermesStore
from grok_oauth_proxy.credentials.messages import HERMES, READ_ONLY
from grok_oauth_proxy.credentials.state import StateFile
from grok_oauth_proxy.errors import StoreProblem
from grok_oauth_proxy.settings import Settings

_LOCK_PATIENCE: Final = 1.0
"""Seconds. A write takes less; a refresh that is going on may take more."""
_EXPORT: Final = "xai-oauth.json"


def check_hermes_store(settings: Settings, login: Login) -> list[Finding]:
    """Hermes' store can be read, holds an xAI login, and can take a renewed one."""
    store = HermesStore(settings.hermes_stores)
    try:
        count = len(store.read())
    except StoreProblem as problem:
        if login.source != "hermes":
            return [note("hermes-store", f"{cause_and_fix(problem.message)[0]} It is not needed.")]
        return [of_error("hermes-store", problem)]
    if (read_only := store.unwritable()) is not None:
        return [wrong("hermes-store", *cause_and_fix(HERMES.say(READ_ONLY, path=read_only)))]
    held = [(path, places) for path in store.paths if (places := _places(path))]
    path, places = held[0] if held else (store.paths[0], "a place that has just changed")
    logins = "one xAI login" if count == 1 else f"{count} xAI logins"
    return [ok("hermes-store", f"{path} holds {logins}, in {places}.")]


def _places(path: Path) -> str:
    """Where in a store tokens for xAI stand."""
    try:
        store = read_json(path)
    except StoreProblem:
        return ""
    block = _child(_child(_child(store, "providers"), PROVIDER), "tokens")
    pool = _child(store, "credential_pool").get(PROVIDER)
    places = ["the provider block"] if block.get("refresh_token") else []
    places += ["the credential pool"] if isinstance(pool, list) and pool else []
    return " and ".join(places)


def _child(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def check_own_files(settings: Settings) -> list[Finding]:
    """The proxy's own files can be read and are not damaged."""
    there = []
    for path in (settings.grok_proxy_auth_state, own_path(settings)):
        try:
            if StateFile(path).load() is not None:
                there.append(path.name)
        except StoreProblem as problem:
            cause, fix = cause_and_fix(problem.message)
            return [wrong("state", cause, fix or "Start the proxy: it keeps the file aside.")]
    folder = settings.grok_proxy_auth_state.parent
    if not there:
        return [note("state", f"{folder} is empty: the proxy has not run yet.")]
    if not os.access(folder, os.W_OK):
        return [wrong("state", f"{folder} cannot be written.", "Make it writable for this user.")]
    return [ok("state", f"{' and '.join(there)} in {folder} can be read.")]


def check_keys(settings: Settings) -> list[Finding]:
    """The named keys of clients can be read."""
    file = KeysFile(settings.keys_file)
    if file.stamp() is None:
        if settings.proxy_api_keys_file is None:
            return [ok("keys", "Clients have no keys of their own.")]
        fix = "Make the first key with `grok-oauth-proxy keys add NAME`, or correct PROXY_API_KEYS_FILE."
        return [wrong("keys", f"{file.path} does not exist.", fix)]
    try:
        count = len(file.load())
    except StoreProblem as problem:
        return [of_error("keys", problem)]
    if not count and not settings.proxy_api_key:
        fix = "Make a key with `grok-oauth-proxy keys add NAME`; or remove the file and restart the proxy."
        return [wrong("keys", f"{file.path} is empty, so that everybody is refused.", fix)]
    return [ok("keys", f"{file.path} has {count} {'key' if count == 1 else 'keys'}.")]


def check_privacy(settings: Settings) -> list[Finding]:
    """Nobody else can read a secret, or put something else in its place; no export lies about."""
    findings = [*_open_files(settings), *_open_folders(settings), *_exports()]
    return findings or [ok("privacy", "Nobody but you can read the files with tokens and keys.")]


def _open_files(settings: Settings) -> Iterator[Finding]:
    state = settings.grok_proxy_auth_state
    secret = [*settings.hermes_stores, state, own_path(settings), *_set_aside(state)]
    secret.append(settings.keys_file)
    for path in secret:
        if _mode(path) & 0o077:
            yield wrong("privacy", f"Other users may read or write {path}.", f"chmod 600 {_quoted(path)}")


def _set_aside(state: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(state.parent.glob("*.json.corrupt-*"))
    return []


def _open_folders(settings: Settings) -> Iterator[Finding]:
    """A folder that others may write to lets them replace what is in it."""
    files = [*settings.hermes_stores, settings.grok_proxy_auth_state, settings.keys_file]
    for path in dict.fromkeys(file.parent for file in files):
        mode = _mode(path)
        if mode & 0o022 and not mode & stat.S_ISVTX:
            yield wrong("privacy", f"Other users may write to {path}.", f"chmod 700 {_quoted(path)}")


def _exports() -> Iterator[Finding]:
    folders = {Path.home()}
    with suppress(FileNotFoundError):  # a folder that was removed meanwhile
        folders.add(Path.cwd())
    for path in sorted(folder / _EXPORT for folder in folders):
        if os.access(path, os.F_OK):
            fix = f"When it has been imported: rm {_quoted(path)}"
            yield wrong("privacy", f"An exported login lies about: {path}.", fix)


def _mode(path: Path) -> int:
    """Its permissions, none when it is not there."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def check_locks(settings: Settings) -> list[Finding]:
    """Each lock that is there can be had, and is given back at once."""
    locks = [path.with_name("auth.lock") for path in settings.hermes_stores]
    locks.append(own_path(settings).with_name("login.lock"))
    there = [path for path in locks if os.access(path, os.F_OK)]
    findings = [finding for path in there if (finding := _try_lock(path))]
    if findings or there:
        return findings or [ok("lock", f"{' and '.join(str(path) for path in there)}: free.")]
    return [note("lock", "There is no lock file yet: nobody has refreshed a login here.")]


def _try_lock(path: Path) -> Finding | None:
    async def take() -> None:
        async with locked((path,), timeout=_LOCK_PATIENCE):
            pass

    try:
        asyncio.run(take())
    except StoreProblem as problem:
        if problem.code != "lock_busy":
            return of_error("lock", problem)
        holder = lock_holder(path) or "another program"
        fix = "During a refresh that is normal for half a minute at most. If it lasts, end that process."
        return wrong("lock", f"{path} is held by {holder}.", fix)
    return None
