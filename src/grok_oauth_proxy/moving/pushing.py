"""`push`: export here, import there, restart, health, in one ssh session.

Law: it stops at the first step that fails, and says what state each side is in. With `--move` this side's
lock is held from reading the login until it is removed here, which happens last; so the link has one spender
at any moment, and whatever breaks, it is in one of the two places at least.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from grok_oauth_proxy.moving.channel import Channel, Disconnected, Host, connected, plain
from grok_oauth_proxy.moving.exporting import TWO_OWNERS, Export, held
from grok_oauth_proxy.moving.files import uninterrupted
from grok_oauth_proxy.moving.problems import Problem
from grok_oauth_proxy.moving.remote import identity
from grok_oauth_proxy.moving.surroundings import Surroundings

_UNCHANGED = "nothing was changed"
_UNKNOWN = "the login may have arrived or not; look before you use it on either side"


@dataclass
class Standing:
    """What is where, for the person who sees a push stop."""

    here: str = _UNCHANGED
    there: str = _UNCHANGED
    step: str = ""

    def __str__(self) -> str:
        return f"Here: {self.here}. There: {self.there}."


def push(surroundings: Surroundings, host: Host, *, own: bool, move: bool) -> None:
    """Do it all and show each step; raise `Problem` with the standing of both sides when one fails."""
    standing = Standing()
    try:
        _push(surroundings, host, standing, own=own, move=move)
    except KeyboardInterrupt:
        _show("✗", standing.step, "interrupted")
        raise Problem(f"The push was interrupted. {standing}", exit_code=130) from None
    except Problem as problem:
        _show("✗", standing.step, problem.message)
        raise Problem(f"The push stopped. {standing}", exit_code=problem.exit_code) from None
    if not move:
        sys.stderr.write(TWO_OWNERS + "\n")


def _push(surroundings: Surroundings, host: Host, standing: Standing, *, own: bool, move: bool) -> None:
    standing.step = "Login here"
    with held(surroundings, surroundings.wanted) as export:
        pass  # before anybody types a password
    _show("✓", standing.step, f"kept by {export.keeper.name}, in {export.keeper.path}")
    with connected(host) as channel:
        standing.step = f"Connection to {host.name}"
        channel.start()
        hello = channel.ask({"do": "hello"}, timeout=None)
        _refuse_itself(surroundings, hello)
        _show("✓", standing.step, f"Python {plain(hello.get('python'))} there")
        standing.step = "Import there"
        with _login_for(surroundings, move=move) as export:
            _import(channel, export, standing, own=own)
            _ask(channel, standing, "Restart", {"do": "restart"})
            _ask(channel, standing, "Health", {"do": "health"})
            if move:
                standing.step = "Removal here"
                with uninterrupted():
                    export.keeper.take_out(export.document)
                    standing.here = "the login was removed"
                _show(
                    "✓",
                    standing.step,
                    f"{export.keeper.path} no longer holds it; end Hermes sessions that run here",
                )


def _refuse_itself(surroundings: Surroundings, hello: dict[str, object]) -> None:
    """Moving a login to where it is would remove it."""
    stores = hello.get("stores")
    ours = {identity(path) for path in (*surroundings.hermes_stores, surroundings.own)} - {None}
    if isinstance(stores, list) and not ours.isdisjoint(map(str, stores)):
        raise Problem("That is this very machine, and this very login. Name another host.")


@contextmanager
def _login_for(surroundings: Surroundings, *, move: bool) -> Iterator[Export]:
    """The login as it is now; to be moved, with its lock held."""
    with held(surroundings, surroundings.wanted) as export:
        if move:
            yield export
            return
    yield export


def _import(channel: Channel, export: Export, standing: Standing, *, own: bool) -> None:
    document = export.document
    two_owners = f"the login is still in {export.keeper.path}"
    standing.there = _UNKNOWN
    try:
        answer = channel.ask({"do": "import", "document": document.content(), "own": own})
    except Disconnected:
        standing.here = two_owners
        raise
    except Problem:
        standing.there = _UNCHANGED
        raise
    standing.here = two_owners
    standing.there = f"the login is in {plain(answer.get('path'))}, so it has two owners"
    if answer.get("code") != document.code:
        raise Problem("The other side confirmed another login than the one that was sent.")
    _show("✓", standing.step, f"in {plain(answer.get('path'))}")
    notes = answer.get("notes")
    for note in notes if isinstance(notes, list) else []:
        sys.stdout.write(f"    {plain(note)}\n")


def _ask(channel: Channel, standing: Standing, step: str, command: dict[str, object]) -> None:
    standing.step = step
    _show("✓", step, plain(channel.ask(command).get("say")))


def _show(mark: str, step: str, text: str) -> None:
    sys.stdout.write(f"{mark} {step}: {text}\n")
    sys.stdout.flush()
