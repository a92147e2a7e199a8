"""The command line: one file a command, one line per error, exit codes as a contract.

0 it worked · 1 it failed · 2 a setting or argument is wrong · 3 the daemon may not start like this, or a file
of the login cannot be used · 130 given up
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from grok_oauth_proxy import __version__
from grok_oauth_proxy.cli.config import config
from grok_oauth_proxy.cli.demo import demo
from grok_oauth_proxy.cli.doctor import doctor
from grok_oauth_proxy.cli.env import env
from grok_oauth_proxy.cli.export import export
from grok_oauth_proxy.cli.import_ import import_
from grok_oauth_proxy.cli.keys import keys
from grok_oauth_proxy.cli.login import login
from grok_oauth_proxy.cli.logout import logout
from grok_oauth_proxy.cli.push import push
from grok_oauth_proxy.cli.serve import serve
from grok_oauth_proxy.cli.service import service
from grok_oauth_proxy.cli.status import status
from grok_oauth_proxy.errors import ProxyError

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="grok-oauth-proxy")
def commands() -> None:
    """A local OpenAI-compatible endpoint for your Grok (SuperGrok) login."""


for command in (
    serve,
    service,
    login,
    logout,
    status,
    doctor,
    env,
    config,
    keys,
    export,
    import_,
    push,
    demo,
):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit. What a user can cause ends in one line, never in a traceback."""
    gc.set_threshold(50_000)  # imports leave no garbage, and looking for it takes a fifth of their time
    # httpx loads a command line of its own where Rich is there, with Pygments: 3 MB and 50 ms for nothing.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # like one that is not installed
    try:
        sys.exit(commands.main(args=arguments, prog_name="grok-oauth-proxy", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:  # Ctrl-C, or a question that was not answered with yes
        click.echo("Given up.", err=True)
        sys.exit(130)
    except ProxyError as error:
        click.echo(f"grok-oauth-proxy: {error.message}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to be written is tried again at the end
        click.echo(f"grok-oauth-proxy: Nothing could be written: {error.strerror}. Make room.", err=True)
        sys.exit(1)
    finally:
        gc.freeze()  # nor does the interpreter look for it on its way out
