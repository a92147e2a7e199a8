"""`grok-oauth-proxy keys`: a key for each client, by name.

Keys are in force as soon as there is one, without a setting: who makes keys expects them to be demanded. For
the same reason revoking the last one opens nothing. The file stands beside the proxy's state, or where
PROXY_API_KEYS_FILE says.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from grok_oauth_proxy.credentials.client_keys import ClientKey, KeysFile

_WITHIN: Final = "A running proxy follows within a second."


@click.group(short_help="Make, list and revoke keys for clients.")
def keys() -> None:
    """Give each client a key of its own, by name.

    Once there is a key, the proxy demands one for /v1. Only digests are kept, in keys.json beside the
    proxy's state or in PROXY_API_KEYS_FILE.

    \b
    Exit codes: 0 it worked
                1 there is no such key, there is one already, or there are too many
                2 an argument or a setting is wrong
                3 the file cannot be read or written
    """


def _name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    from grok_oauth_proxy.credentials.client_keys import NAME

    if not NAME.fullmatch(value):
        raise click.BadParameter("use 1 to 64 letters, digits, dots, dashes and underscores.")
    return value


def _limit(_context: click.Context, parameter: click.Parameter, value: int | None) -> int | None:
    from grok_oauth_proxy.credentials.client_keys import LIMITS

    most = LIMITS[str(parameter.name)]
    if value is not None and not 1 <= value <= most:
        raise click.BadParameter(f"use a number from 1 to {most}.")
    return value


@keys.command(short_help="Make a key and print it once.")
@click.argument("name", callback=_name)
@click.option("--requests-per-minute", type=int, callback=_limit, help="In any minute; more get 429.")
@click.option("--concurrent", type=int, callback=_limit, help="Open at once; more get 429.")
def add(name: str, requests_per_minute: int | None, concurrent: int | None) -> None:
    """Make a key for the client NAME and print it, the only time that it is shown.

    The limits hold for each of PROXY_WORKERS.
    """
    from grok_oauth_proxy.errors import ProxyError

    if sys.__stdout__ is None:
        raise ProxyError("There is no standard output to print the key to. None was made.", code="no_output")
    file = _file()
    key = asyncio.run(file.add(name, requests_per_minute=requests_per_minute, concurrent=concurrent))
    try:
        click.echo(key.get_secret_value())
    except OSError:
        asyncio.run(file.revoke(name))
        click.echo("The key could not be printed, so it is revoked.", err=True)
        raise
    click.echo(
        f"This is the key of {name}. It is shown this once: {file.path} keeps its digest only.\n"
        "The client sends it as its API key (Authorization: Bearer, or OPENAI_API_KEY for most). "
        f"{_WITHIN}",
        err=True,
    )


@keys.command("list", short_help="Show the names and limits.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def list_(as_json: bool) -> None:
    """Show every key's name, when it was made, and its limits.

    \b
    The JSON object: {"file", "demanded", "keys": [{"name", "added_at", "requests_per_minute",
    "concurrent"}]}, a limit null where there is none. demanded: whether clients must send a key.
    """
    file = _file()
    there = file.stamp() is not None
    known = file.load() if there else ()
    if as_json:
        shown = [_shown(key) for key in known]
        click.echo(json.dumps({"file": str(file.path), "demanded": there, "keys": shown}, indent=2))
    elif not known:
        click.echo(_EMPTY.format(path=file.path) if there else _NONE)
    else:
        for key in known:
            click.echo(_line(key))


_NONE: Final = (
    "There are no keys. Make one with `grok-oauth-proxy keys add NAME`; from then on keys are demanded."
)
_EMPTY: Final = (
    "There are no keys, and {path} demands one: only PROXY_API_KEY, if it is set, lets anybody in. Make one "
    "with `grok-oauth-proxy keys add NAME`; or remove the file and restart the proxy to demand none."
)


def _shown(key: ClientKey) -> dict[str, object]:
    fields = asdict(key)
    del fields["digest"]
    return fields


def _line(key: ClientKey) -> str:
    from grok_oauth_proxy.cli.terminal import plain

    limits = [f"{key.requests_per_minute} requests a minute"] if key.requests_per_minute else []
    limits += [f"{key.concurrent} at once"] if key.concurrent else []
    return f"{key.name}  made {plain(key.added_at)}  {', '.join(limits) or 'no limits'}"


@keys.command(short_help="Take a key away.")
@click.argument("name", callback=_name)
def revoke(name: str) -> None:
    """Take the key NAME away. What it has open is answered; nothing more is."""
    file = _file()
    left = asyncio.run(file.revoke(name))
    click.echo(f"The key {name} is revoked. {_WITHIN}")
    if not left:
        click.echo("It was the last one. " + _EMPTY.format(path=file.path))


def _file() -> KeysFile:
    from grok_oauth_proxy.credentials.client_keys import KeysFile
    from grok_oauth_proxy.settings import load_settings

    return KeysFile(load_settings().keys_file)
