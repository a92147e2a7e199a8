#!/usr/bin/env python3
"""Brings the login to a server over ssh, restarts the proxy there and asks for its health.

Needs Python 3.9, here and there, and nothing else; see --help. The same as `grok-oauth-proxy push`.
"""

import os
import sys

if sys.version_info < (3, 9):
    sys.exit("Python 3.9 or newer is needed.")

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "src"))

from grok_oauth_proxy.moving.commands import run_push

if __name__ == "__main__":
    sys.exit(run_push(("python3", os.path.abspath(__file__)), sys.argv[1:]))
