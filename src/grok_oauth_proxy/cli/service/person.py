"""Whose service it is, and this process as that person.

`sudo grok-oauth-proxy service install --system` runs as root, for the person who called sudo: their settings
count, and what is made in their home is made with their rights.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from grok_oauth_proxy.cli.service.places import command_line
from grok_oauth_proxy.errors import ConfigurationError, ProxyError


@dataclass(frozen=True, slots=True)
class Person:
    """An account of this machine."""

    name: str
    uid: int
    gid: int
    home: Path


def myself() -> Person:
    """The account this process runs as; its home is where HOME says. Raises `ProxyError`."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    try:
        home = Path.home()
    except RuntimeError:
        raise ConfigurationError("No home directory is known. Set HOME.") from None
    return Person(name, uid, os.getgid(), home)


def is_root() -> bool:
    return os.geteuid() == 0


def behind_sudo(named: str | None, *, dry_run: bool) -> Person:
    """Whom a unit of the system is to run as: the one `named`, else who called sudo.

    Raises `ProxyError` without root's rights, unless nothing is to be done with them.
    """
    if os.getuid() != 0 and not dry_run:
        raise ProxyError(
            f"A unit of the system needs root. Run `{command_line(*sys.argv[1:], as_root=True)}`, or leave "
            "--system out.",
            code="needs_root",
        )
    name = named or (os.environ.get("SUDO_USER") if os.getuid() == 0 else myself().name)
    if not name or (name == "root" and not named):
        raise click.UsageError("Say whom it shall run as: --user NAME.")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise click.UsageError(f"There is no user {name!r} on this machine.") from None
    return Person(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


def refuse_sudo() -> None:
    """Raises `ProxyError` where sudo would install a user's service for root."""
    if os.getuid() == 0 and os.environ.get("SUDO_USER", "root") != "root":
        raise ProxyError(
            "Behind sudo this would become a service of root's. Leave sudo out, or add --system.",
            code="behind_sudo",
        )


@contextmanager
def living_as(person: Person) -> Iterator[None]:
    """This process with the home of `person`, and with their rights where it is root's."""
    groups, group, home = os.getgroups(), os.getegid(), os.environ.get("HOME")
    switched = os.getuid() == 0 != person.uid
    if switched:
        try:
            os.initgroups(person.name, person.gid)  # as systemd does
            os.setegid(person.gid)
            os.seteuid(person.uid)
        except PermissionError:  # root without capabilities, in a container
            raise ProxyError(
                f"This root may not act as {person.name}. Run this as that user, without --system.",
                code="needs_root",
            ) from None
    os.environ["HOME"] = str(person.home)
    try:
        yield
    finally:
        if switched:
            os.seteuid(0)
            os.setegid(group)
            os.setgroups(groups)
        os.environ.pop("HOME")
        if home is not None:
            os.environ["HOME"] = home
