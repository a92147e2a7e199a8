"""The entry point of `grok-oauth-proxy`; `python -m grok_oauth_proxy` without a command is the daemon."""

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit. Ctrl-C ends it with 130 from the first moment on, while it loads, too."""
    if os.environ.get("HOME") == "":
        del os.environ["HOME"]  # or it would mean the root folder
    try:
        from grok_oauth_proxy.cli import main as run

        run(arguments)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:] or ["serve"])
