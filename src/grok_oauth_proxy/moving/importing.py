"""`import`: a document becomes the login of this machine.

Law: everything is checked before anything is written; the login that is replaced is on the disk under another
name before; the bookkeeping goes last, so that an interruption between any two steps loses nothing.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from grok_oauth_proxy.moving.claims import client_id as claimed_client_id
from grok_oauth_proxy.moving.claims import jwt_claims, moment
from grok_oauth_proxy.moving.document import MAX_DOCUMENT, Document, parse
from grok_oauth_proxy.moving.files import locked, make_folder, uninterrupted
from grok_oauth_proxy.moving.keepers import DEAD, HERE, SPENT, HermesKeeper, Keeper, OwnKeeper
from grok_oauth_proxy.moving.problems import Problem
from grok_oauth_proxy.moving.surroundings import Surroundings

_SPENT = (
    "This export is older than the login in {path}: its refresh token has been spent here. "
    "Nothing was changed."
)
_DEAD = "The authorization server has refused this very login here before. Sign in again, then export that."
_TWO_OWNERS = (
    "This very login is kept by {name} on this machine ({path}): it would get two owners, which ends it. "
    "Nothing was changed. Sign in for each of them."
)
_OLDER_COPY = (
    "That one is of the same account, and newer. If the import is only an older copy of it, put it back at "
    "once: the older copy is spent."
)


@dataclass(frozen=True)
class Imported:
    """Where the login is now, and what a person should know: one sentence each."""

    keeper: Keeper
    document: Document
    notes: tuple[str, ...]


def import_file(surroundings: Surroundings, source: str, *, own: bool, reset: bool) -> None:
    """Import the document in this file ("-": stdin) and say what to do next; raise `Problem`."""
    document = parse(_read(source), allow_loopback=surroundings.allow_loopback)
    imported = import_login(surroundings, document, own=own, reset=reset)
    lines = [f"The login is in {imported.keeper.path}.", *imported.notes]
    if source != "-":
        lines.append(f"Delete the export now: rm {source}")
    else:
        lines.append("If the export is in a file somewhere, delete that now.")
    lines.append("If `export --move` waits for a code, type this one there; else it is not needed.")
    lines.append(f"Confirmation code: {document.code}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def import_login(surroundings: Surroundings, document: Document, *, own: bool, reset: bool) -> Imported:
    """Write the login to the proxy's own state, or to Hermes' store; raise `Problem`.

    `reset`: what the bookkeeping says of an earlier login is taken out of it.
    """
    keepers: list[Keeper] = [HermesKeeper(surroundings), OwnKeeper(surroundings)]
    other, keeper = keepers if own else reversed(keepers)
    _refuse_second_owner(document, keeper, other)  # before a folder or a lock file is made
    make_folder(keeper.path.parent)
    with locked(keeper.locks()):
        _refuse_second_owner(document, keeper, other)
        newer = _is_newer(keeper, document)
        with uninterrupted():
            kept = keeper.put(document)
            notes = [*_notes(surroundings, document, kept, own=own), *(_reset(keeper) if reset else [])]
        if kept and newer:
            notes.append(_OLDER_COPY)
    if not own and _lives(other):
        notes.append("The proxy has a login of its own, which it prefers: see CREDENTIAL_SOURCE.")
    return Imported(keeper, document, tuple(notes))


def _lives(keeper: Keeper) -> bool:
    try:
        keeper.living()
    except Problem:
        return False
    return True


def _is_newer(keeper: Keeper, document: Document) -> bool:
    """Whether the login that lives here is of the same account and was issued later: perhaps a successor."""
    try:
        tokens = keeper.living().tokens
    except Problem:
        return False
    ours, theirs = (jwt_claims(each["access_token"]).get("sub") for each in (tokens, document.tokens))
    issued = moment(tokens, "iat"), moment(document.tokens, "iat")
    return ours == theirs is not None and issued[0] is not None and issued[0] > (issued[1] or 0)


def _reset(keeper: Keeper) -> list[str]:
    """From here on the login is here, whatever happens: what fails is a note."""
    try:
        damaged = keeper.forget_stale()
    except Problem as problem:
        return [f"The proxy's state of an earlier login stays: {problem.message}"]
    return [f"The proxy's damaged state is kept as {damaged}."] if damaged else []


def _refuse_second_owner(document: Document, keeper: Keeper, other: Keeper) -> None:
    for each in (keeper, other):
        try:
            relation = each.relation(document)
        except Problem:
            if each is keeper:
                raise
            continue  # who can't be read keeps no login
        if relation == DEAD:
            raise Problem(_DEAD)
        if relation == SPENT:
            raise Problem(_SPENT.format(path=each.path))
        if relation == HERE and each is other:
            raise Problem(_TWO_OWNERS.format(name=each.name, path=each.path))


def _notes(surroundings: Surroundings, document: Document, kept: Path | None, *, own: bool) -> list[str]:
    notes = []
    if kept:
        option = " with --own" if own else ""
        notes.append(
            f"The login that was there before is kept in {kept}. To put it back, import that{option}."
        )
    wanted = surroundings.client_id or claimed_client_id(document.tokens)
    if not own and wanted != document.client_id:
        notes.append(
            f"Set XAI_OAUTH_CLIENT_ID={document.client_id} for the proxy: the login does not say so itself."
        )
    return notes


def _read(source: str) -> bytes:
    if source == "-":
        if sys.stdin.isatty():
            sys.stderr.write("Paste the export, then press Ctrl-D.\n")
        return sys.stdin.buffer.read(MAX_DOCUMENT + 1)
    try:
        with Path(source).open("rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(MAX_DOCUMENT + 1)
    except OSError as error:
        raise Problem(f"{source} cannot be read: {error.strerror}. Name the file of the export.") from None
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        sys.stderr.write(f"Warning: other users of this machine could read {source}.\n")
    return raw
