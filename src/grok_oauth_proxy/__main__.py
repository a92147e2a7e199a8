"""`python -m grok_oauth_proxy`: the same commands; without one, the daemon."""

import sys

from grok_oauth_proxy.cli import main

if __name__ == "__main__":
    main(sys.argv[1:] or ["serve"])
