"""Installs and removes the service: shows what it is about to do, does it, says how to undo it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import click

from grok_oauth_proxy.cli.running import Running, find_running
from grok_oauth_proxy.cli.service import files
from grok_oauth_proxy.cli.service.carrying import carry, to_carry
from grok_oauth_proxy.cli.service.launchd import wait_for_bootout
from grok_oauth_proxy.cli.service.looking import is_active, last_lines, when_it_starts
from grok_oauth_proxy.cli.service.managers import Manager, installed, refuse_twin
from grok_oauth_proxy.cli.service.person import is_root, living_as
from grok_oauth_proxy.cli.service.places import Places, command_line, find_places, hidden
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.listening import check_place
from grok_oauth_proxy.moving.surroundings import service_environment
from grok_oauth_proxy.settings import Settings, load_settings

_DONE_WITHIN: Final = 180.0
"""Seconds; the unit gives a stop 90 s, and a start 60 s."""


def install(manager: Manager, *, socket: bool, dry_run: bool) -> None:
    """Write the files, enable and start. Raises `ProxyError`."""
    with living_as(manager.person):
        settings = load_settings()
        places = find_places(settings)
        carried = to_carry(places.settings_file)
    written = manager.files(places, settings, socket=socket)
    stale = [
        path for path in manager.paths if files.is_ours(path) and path not in {file.path for file in written}
    ]
    refusal = _refusal(manager, places, settings)
    if refusal and not dry_run:
        raise refusal
    show(manager, places, written, stale, carried, socket=socket)
    if dry_run:
        if refusal:
            click.echo(f"As things are, it would be refused: {refusal.message}", err=True)
        return
    with living_as(manager.person):
        _make_folder(places)
        carry(places.settings_file, carried)
    if stale:
        run_all(manager.stop())
    for path in stale:
        files.remove(path)
    for file in written:
        files.write(file)
    click.echo()
    _start(manager, socket=socket)
    _linger(manager)
    with living_as(manager.person):
        found = find_running(settings)
    where = f" at {found.address}" if isinstance(found, Running) else ""
    click.echo(f"The service is installed, and runs{where}. It starts {when_it_starts(manager)}.")


def _refusal(manager: Manager, places: Places, settings: Settings) -> ProxyError | None:
    """Why it cannot be installed as things are."""
    try:
        files.refuse_foreign(manager.paths)
        manager.require()
        refuse_twin(manager)
        _refuse_second_proxy(manager, settings)
        path = settings.proxy_uds
        if path and (path.absolute().parent != places.state or places.state.exists()):  # which is made later
            with living_as(manager.person):
                check_place(path.absolute())
    except ProxyError as error:
        return error
    return None


def show(
    manager: Manager,
    places: Places,
    written: Sequence[files.File],
    stale: Sequence[Path],
    carried: Collection[str],
    *,
    socket: bool,
) -> None:
    """What `install` writes and runs, and how to undo it."""
    for file in written:
        click.echo(f"This is written to {file.path}:\n")
        click.echo("".join(f"    {line}".rstrip() + "\n" for line in file.text.splitlines()))
    click.echo(f"The folder {places.state} is made, if it is not there.\n")
    if carried:
        names = ", ".join(sorted(carried))
        click.echo(
            f"A service does not see this shell. To {places.settings_file} is added, to stay: {names}\n"
        )
    for path in stale:
        click.echo(f"This is removed, an earlier install wrote it: {path}\n")
    click.echo("Then these are run:")
    linger = manager.linger()
    stop = manager.stop() if stale else []
    for command in [*stop, *manager.start(socket=socket), *([linger] if linger else [])]:
        click.echo(f"    {shlex.join(command)}")
    click.echo(f"To undo it: {command_line('service', 'uninstall', as_root=manager.for_system)}")
    if (unseen := hidden(places)) and manager.name != "launchd":
        click.echo(
            f"Warning: the service has a /tmp of its own and will not see {unseen}. Move it.", err=True
        )


def _refuse_second_proxy(manager: Manager, settings: Settings) -> None:
    with living_as(manager.person):
        found = find_running(settings)
    if isinstance(found, Running) and not is_active(manager):
        raise ProxyError(
            f"A proxy that you started yourself answers at {found.address}. End it (Ctrl-C), so that the "
            "service gets its port, then run this again.",
            code="already_running",
        )


def _make_folder(places: Places) -> None:
    try:
        places.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ProxyError(
            f"{places.state} cannot be made: {error.strerror}. Make it, with mode 0700.", code="no_folder"
        ) from None


def _start(manager: Manager, *, socket: bool) -> None:
    try:
        run_all(manager.start(socket=socket))
    except ProxyError as error:
        lines = last_lines(manager)
        for line in lines:
            click.echo(f"    {line}", err=True)
        said = "its log says" if lines else error.message
        raise ProxyError(
            f"The service is installed, but did not start. Mend what {said}, then run this again.",
            code="not_started",
        ) from None


def _linger(manager: Manager) -> None:
    command = manager.linger()
    if command is None:
        return
    try:
        run_all([command])
    except ProxyError:
        click.echo(
            "It ends when you log out. To let it run on, and start with the machine: "
            f"sudo loginctl enable-linger {manager.person.name}"
        )


def uninstall() -> None:
    """Stop, disable and remove what `install` wrote, and nothing else. Raises `ProxyError`."""
    manager = installed()
    if manager is None:
        click.echo("No service of grok-oauth-proxy is installed here.")
        return
    files.refuse_foreign(manager.paths)
    require_root(manager)
    ours = [path for path in manager.paths if path.exists()]
    try:
        run_all(manager.stop())
    except ProxyError as error:
        click.echo(f"It could not be stopped: {error.message}", err=True)
    for path in ours:
        files.remove(path)
        click.echo(f"Removed {path}")
    try:
        run_all(manager.forget())
    except ProxyError as error:
        click.echo(error.message, err=True)
    click.echo("The service is removed. Login, settings and this program stay.")


def require_root(manager: Manager) -> None:
    """Raises `ProxyError` for a unit of the system without root's rights."""
    if manager.for_system and not is_root():
        again = command_line("service", "uninstall", as_root=True)
        raise ProxyError(f"It is a unit of the system. Run `{again}`.", code="needs_root")


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run them in turn, each shown before. Raises `ProxyError` with what the first that fails says."""
    for command in commands:
        shown = shlex.join(command)
        click.echo(f"$ {shown}")
        try:
            ended = subprocess.run(  # noqa: S603 - the system's own tools, named by us
                command,
                env=service_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_DONE_WITHIN,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = getattr(error, "strerror", None) or "no end in time"
            raise ProxyError(f"`{shown}` failed: {reason}.", code="command_failed") from None
        if not wait_for_bootout(command) and ended.returncode:
            lines = ended.stderr.decode("utf-8", "replace").strip().splitlines()
            told = lines[0].rstrip(".") if lines else f"exit code {ended.returncode}"
            raise ProxyError(f"`{shown}` failed: {told}.", code="command_failed")
