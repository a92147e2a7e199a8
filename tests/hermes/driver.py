"""Run by Hermes' Python, never by ours: its own functions, one command a line, one JSON line in answer.

    python -P driver.py provider|pool

provider: the calls made for a login that `hermes model` left behind; pool: those for `hermes auth add`.
Hermes prints while it works, so its standard output goes to standard error; only answers go to ours.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

Answer = dict[str, Any]
PROVIDER = "xai-oauth"

# Hermes is in no environment a type checker looks into.
auth: Any = importlib.import_module("hermes_cli.auth")
credential_pool: Any = importlib.import_module("agent.credential_pool")


def login() -> Answer:
    """What `hermes model` calls when a person chooses to sign in anew."""
    arguments = argparse.Namespace(no_browser=True, timeout=None)
    auth._login_xai_oauth(arguments, auth.PROVIDER_REGISTRY[PROVIDER], force_new_login=True)  # noqa: SLF001 - Hermes has no public name for it
    return {}


def resolve_provider(*, refresh: bool) -> Answer:
    credentials = auth.resolve_xai_oauth_runtime_credentials(force_refresh=refresh)
    return {"access_token": credentials["api_key"]}


def resolve_pool(*, refresh: bool) -> Answer:
    """A pool is loaded for each request, as Hermes' direct integrations do it."""
    pool = credential_pool.load_pool(PROVIDER)
    entry = pool.try_refresh_matching() if refresh else pool.select()
    if entry is None:
        return {"error": "the pool gave no entry"}
    return {"access_token": entry.access_token}


loaded: list[Any] = []


def load() -> Answer:
    """What a session of Hermes keeps in memory."""
    loaded.append(credential_pool.load_pool(PROVIDER))
    loaded[-1].select()
    return {}


def refresh_loaded() -> Answer:
    entry = loaded[-1].try_refresh_current()
    return {"access_token": entry.access_token if entry else ""}


@contextlib.contextmanager
def lock_held() -> Iterator[None]:
    """The lock that Hermes takes around each of its own refreshes."""
    with auth._auth_store_lock():  # noqa: SLF001 - Hermes has no public name for it
        yield


def serve(answers: Any, resolve: Callable[..., Answer]) -> None:
    """Obey until `quit` or the end of the input."""
    commands: dict[str, Callable[[], Answer]] = {
        "login": login,
        "refresh": lambda: resolve(refresh=True),
        "resolve": lambda: resolve(refresh=False),
        "load": load,
        "refresh loaded": refresh_loaded,
        "hold": dict,
        "release": dict,
    }
    with contextlib.ExitStack() as held:
        for line in sys.stdin:
            command = line.strip()
            if command == "quit":
                return
            try:
                answer = commands[command]()
                if command == "hold":
                    held.enter_context(lock_held())
                elif command == "release":
                    held.close()
            except Exception as error:  # noqa: BLE001 - whatever Hermes raises is the answer
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    own_output, sys.stdout = sys.stdout, sys.stderr
    serve(own_output, {"provider": resolve_provider, "pool": resolve_pool}[sys.argv[1]])
