"""`export`: one login as a document, and with `--move` its removal here once the other side confirmed.

Law: one owner. A link known as spent or dead is never exported. With `--move` this side's lock is held from
reading until removal, so that nobody here can spend the link meanwhile; nothing is removed before the code of
the import was given, nor when the login here is no longer the exported one.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from grok_oauth_proxy.moving.document import Document
from grok_oauth_proxy.moving.files import locked, uninterrupted, write_new
from grok_oauth_proxy.moving.keepers import HermesKeeper, Keeper, OwnKeeper
from grok_oauth_proxy.moving.problems import NoLogin, Problem
from grok_oauth_proxy.moving.surroundings import Surroundings

_PATIENCE = 600.0
"""Seconds a person has to bring the confirmation code: Hermes can't refresh anything as long."""

TWO_OWNERS = (
    "Warning: the login now has two owners. Whoever refreshes it second presents a spent token, which ends "
    "it for both. Sign in again on one side before its access token expires, or use --move."
)
_TO_BE_MOVED = (
    "Import it on the other side now. Until then nobody here can refresh the login: its lock is held, for "
    "ten minutes at most."
)
_NOT_REMOVED = (
    "Nothing was removed here. If the other side has imported the login, it has two owners now: run this "
    "again and give the code which that import showed, or sign in again on one side."
)
_TRIES = 20
_LONGEST_LINE = 1024
"""Bytes, after which a line counts as ended."""


@dataclass(frozen=True)
class Export:
    """A login that was read, and who keeps it."""

    keeper: Keeper
    document: Document


@contextmanager
def held(surroundings: Surroundings, wanted: str | None) -> Iterator[Export]:
    """Read the login, with its keeper's lock held; raise `Problem`.

    `wanted` is "own", "hermes" or None: the own login if it lives, else Hermes'.
    """
    own, hermes = OwnKeeper(surroundings), HermesKeeper(surroundings)
    if wanted != "hermes" and (wanted == "own" or own.path.exists()):
        with locked(own.locks()):
            try:
                export = Export(own, _complete(own.living()))
            except NoLogin:
                if wanted == "own":
                    raise
            else:
                yield export
                return
    with locked(hermes.locks()):
        yield Export(hermes, _complete(hermes.living()))


def _complete(document: Document) -> Document:
    if document.client_id is None:
        raise Problem("The login does not say which client it belongs to. Set XAI_OAUTH_CLIENT_ID.")
    return document


def export_login(surroundings: Surroundings, *, wanted: str | None, output: Path | None) -> None:
    """Print the document, or write it to `output`; raise `Problem`."""
    with held(surroundings, wanted) as export:
        pass
    _hand_over(export.document, output)
    _tell(TWO_OWNERS)


def move_login(surroundings: Surroundings, *, wanted: str | None, output: Path | None) -> None:
    """The same; then remove the login here, when the code that the import shows was given."""
    with held(surroundings, wanted) as export:
        try:
            _hand_over(export.document, output)
            _end_output()
            _tell(_TO_BE_MOVED)
            _confirm(export.document)
        except KeyboardInterrupt:
            raise Problem(_NOT_REMOVED, exit_code=130) from None
        with uninterrupted():
            export.keeper.take_out(export.document)
            _tell(f"The login was removed from {export.keeper.path}; the other side is its only owner.")
    _tell("End Hermes sessions that still run here: they may have it in memory.")
    if output is not None:
        _tell(f"Delete the export now: rm {output}")


def _hand_over(document: Document, output: Path | None) -> None:
    if output is not None:
        write_new(output, document.text())
        return
    if sys.__stdout__ is None:  # the caller closed it
        raise Problem("There is no standard output to export to. Nothing was removed. Use --output FILE.")
    try:
        _close_to_others(sys.stdout.fileno())
        sys.stdout.write(document.text())
        sys.stdout.flush()
    except OSError as error:
        _end_output()  # or what is left of it would be tried again on the way out
        raise Problem(f"The export could not be written: {error.strerror}. Nothing was removed.") from None


def _end_output() -> None:
    """An import at the other end of a pipe waits for the end of the document."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def _close_to_others(descriptor: int) -> None:
    """A shell makes the file of `> FILE` readable for everybody: it is closed before a secret is in it."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o077:
        return
    try:
        os.fchmod(descriptor, status.st_mode & 0o700)
    except OSError:
        raise Problem("The file for the export can be read by others. Use --output FILE.") from None


def _confirm(document: Document) -> None:
    """Ask for the code on stdin until it is given; raise `Problem` when it does not come in time."""
    typed = _typed(time.monotonic() + _PATIENCE)
    for _ in range(_TRIES):
        sys.stderr.write("Confirmation code shown by the import: ")
        sys.stderr.flush()
        line = next(typed, None)
        if line is None:
            break
        if "".join(line.split()).upper().replace("-", "") == document.code.replace("-", ""):
            return
        _tell("That is not the code of this login.")
    raise Problem(f"The confirmation code was not given. {_NOT_REMOVED}")


def _typed(deadline: float) -> Iterator[str]:
    """The lines of stdin, as they come, to the end; raise `Problem` at the deadline (`time.monotonic`)."""
    rest = b""
    while (left := deadline - time.monotonic()) > 0:
        if b"\n" not in rest and len(rest) < _LONGEST_LINE:
            if not select.select([sys.stdin], [], [], left)[0]:
                break
            read = os.read(sys.stdin.fileno(), _LONGEST_LINE)
            if not read:
                if rest:
                    yield rest.decode(errors="replace")
                return
            rest += read
            continue
        line, _, rest = rest.partition(b"\n")
        yield line.decode(errors="replace")
    raise Problem(f"No confirmation code came in time. {_NOT_REMOVED}")


def _tell(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()
