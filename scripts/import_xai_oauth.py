#!/usr/bin/env python3
"""Takes over a login that export_xai_oauth.py printed.

Needs Python 3.9 and nothing else; see --help. The same as `grok-oauth-proxy import`.
"""

import os
import sys

if sys.version_info < (3, 9):
    sys.exit("Python 3.9 or newer is needed.")

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "src"))

from grok_oauth_proxy.moving.commands import run_import

if __name__ == "__main__":
    sys.exit(run_import(("python3", os.path.abspath(__file__)), sys.argv[1:]))
