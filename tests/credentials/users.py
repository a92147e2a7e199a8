"""A second user of the machine, for what root is always allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")


def as_nobody(statement: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a statement as another user, `path` in sys.argv[1]; imports are done before the user changes."""
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from grok_oauth_proxy.credentials.files import write_json\n"
        "from grok_oauth_proxy.credentials.hermes import HermesStore\n"
        f"os.setgroups([])\nos.setgid({NOBODY})\nos.setuid({NOBODY})\n{statement}\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, timeout=30
    )
