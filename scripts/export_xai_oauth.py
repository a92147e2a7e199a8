#!/usr/bin/env python3
"""Prints the login, for import_xai_oauth.py on another machine.

Needs Python 3.9 and nothing else; see --help. The same as `grok-oauth-proxy export`.
"""

import os
import sys

if sys.version_info < (3, 9):
    sys.exit("Python 3.9 or newer is needed.")

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "src"))

from grok_oauth_proxy.moving.commands import run_export

if __name__ == "__main__":
    sys.exit(run_export(("python3", os.path.abspath(__file__)), sys.argv[1:]))
