"""The options of `export`, `import` and `push`, for the scripts and for the command line alike.

Exit codes: 0 it worked · 1 it failed · 2 an argument or a setting is wrong · 130 Ctrl-C
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from grok_oauth_proxy.moving.channel import Host
from grok_oauth_proxy.moving.exporting import export_login, move_login
from grok_oauth_proxy.moving.importing import import_file
from grok_oauth_proxy.moving.problems import Problem
from grok_oauth_proxy.moving.pushing import push
from grok_oauth_proxy.moving.surroundings import look_around

Program = Sequence[str]
"""The words that start a command, as a person would type them."""


def run_export(program: Program, arguments: Sequence[str]) -> int:
    """`export`: print the login, for another machine."""
    parser = _Parser(program, "Print the login as JSON, for `import` on another machine; keep it secret.")
    _whose(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it to a new file of mode 0600")
    _flag(parser, "--move", "remove it here, once you typed the code that `import` shows")

    def work() -> None:
        options = parser.parse_args(arguments)
        (move_login if options.move else export_login)(
            (here := look_around()), wanted=options.wanted or here.wanted, output=options.output
        )

    return _run(work)


def run_import(program: Program, arguments: Sequence[str]) -> int:
    """`import`: take over a login from another machine."""
    parser = _Parser(program, "Take over a login that `export` printed, for Hermes and the proxy.")
    parser.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="the export (default, or -: stdin)"
    )
    _flag(parser, "--own", "for the proxy alone; Hermes' store is left alone")
    _flag(parser, "--no-reset-proxy-state", "keep what the proxy's state says of an earlier login")

    def work() -> None:
        options = parser.parse_args(arguments)
        reset = not options.no_reset_proxy_state
        import_file(look_around(), options.file, own=options.own, reset=reset)

    return _run(work)


def run_push(program: Program, arguments: Sequence[str]) -> int:
    """`push`: export, copy over ssh, import, restart and deep health in one step."""
    parser = _Parser(program, "Bring the login to a server over ssh, where python3 is all that is needed.")
    parser.add_argument("--host", required=True, metavar="USER@SERVER", help="the server, as ssh knows it")
    _whose(parser)
    parser.add_argument("--identity", type=Path, metavar="KEY", help="private key for ssh")
    _flag(parser, "--own", "for the proxy there alone, not for Hermes")
    _flag(parser, "--move", "remove the login here once the server uses it")
    _flag(parser, "--print-reauth-command", "only print the command that pushes a login again later")

    def work() -> None:
        options = parser.parse_args(arguments)
        host = Host(options.host, options.identity)
        if options.print_reauth_command:
            flags = [f"--from={options.wanted}"] if options.wanted else []
            flags += [f"--{name}" for name in ("own", "move") if getattr(options, name)]
            identity = ["--identity", str(host.identity.absolute())] if host.identity else []
            print(shlex.join([*program, "--host", host.name, *identity, *flags]))
            return
        here = look_around()
        here = replace(here, wanted=options.wanted or here.wanted)
        push(here, host, own=options.own, move=options.move)

    return _run(work)


def _whose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="wanted",
        choices=("own", "hermes"),
        help="whose login: the proxy's own, or Hermes' (default: as CREDENTIAL_SOURCE, else own if it lives)",
    )


def _flag(parser: argparse.ArgumentParser, name: str, meaning: str) -> None:
    parser.add_argument(name, action="store_true", help=meaning)


class _Parser(argparse.ArgumentParser):
    def __init__(self, program: Program, description: str) -> None:
        super().__init__(prog=shlex.join(program), description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise Problem(f"{message[:1].upper()}{message[1:]}. See --help.", exit_code=2)


def _open_missing_streams() -> None:
    """A stream that the caller closed leads nowhere: else a lock file, or a login, took its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


def _run(work: Callable[[], None]) -> int:
    """The exit code; what a user can cause ends in one line, never in a traceback."""
    os.umask(0o077)
    # A shell starts its background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        work()
    except Problem as problem:
        print(f"grok-oauth-proxy: {problem.message}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("\ngrok-oauth-proxy: Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    return 0
