"""The real Hermes as a client of the proxy, configured by what `config hermes` prints."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness import PATIENCE, Home, environment, provider_store, proxy_running, run
from tests.sim.harness import running

KEY = """a-key'of"`id`\\n!;-1234"""


def test_hermes_chats(home: Home, hermes_bin: Path) -> None:
    """With the snippet as its whole config.yaml, Hermes asks the proxy, with its key, and has an answer."""
    with running() as sim:
        home.write_store(provider_store(sim.login()))
        with proxy_running(home, sim, PROXY_API_KEY=KEY):
            snippet = run(environment(home, PROXY_API_KEY=KEY), "config", "hermes").stdout
            client_home = home.path / "client"
            client_home.mkdir()
            (client_home / "config.yaml").write_text(snippet)
            ended = subprocess.run(
                [hermes_bin / "hermes", "-z", "good morning"],
                env={"HOME": str(home.path), "HERMES_HOME": str(client_home), "PATH": "/usr/bin:/bin"},
                cwd=home.path,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE * 4,
                check=False,
            )
            assert "You said: good morning" in ended.stdout, ended.stderr
            asked = [request["target"] for request in sim.requests() if request["method"] == "POST"]
    assert asked == ["/v1/chat/completions"]
