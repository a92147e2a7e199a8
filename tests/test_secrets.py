"""No secret leaves the program: canaries stand in every secret, and everything it emits is searched."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path

from tests.harness import Home, Proxy, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim

KEY = "canary-of-the-proxy-key"
NAMED_KEY = "gop_" + "canary-of-a-named-key".ljust(43, "x")
DIGEST = hashlib.sha256(NAMED_KEY.encode()).hexdigest()
CLIENT_SECRETS = {
    "Authorization": f"Bearer {KEY}",
    "Cookie": "session=canary-cookie",
    "X-Api-Key": "canary-client-key",
    "X-Proxy-Api-Key": NAMED_KEY,
    "Proxy-Authorization": "Basic canary-basic",
}
CANARIES = {
    KEY,
    NAMED_KEY,
    DIGEST,
    "canary-cookie",
    "canary-client-key",
    "canary-basic",
    "canary-query",
    "canary-body",
}


def tokens_of(home: Home) -> set[str]:
    """Every token that stands on the disk of this home."""
    found: set[str] = set()
    for path in (home.auth, home.state):
        text = json.dumps(json.loads(path.read_text()))
        found |= {part for part in text.split('"') if len(part) > 40 and " " not in part}
    return found


def talk(proxy: Proxy, sim: Sim) -> list[str]:
    """Ask in every way that makes the proxy say something; what it said, heads and bodies."""
    said: list[str] = []
    refusals = ["stale-401", "stale-403-wke", "entitlement", "quota-429", "content", "cloudflare-html"]
    directives = ["", "cut=head", "status=503", *(f"reject={kind}" for kind in refusals)]
    for directive in directives:
        headers = CLIENT_SECRETS | ({"x-sim": directive} if directive else {})
        answer = proxy.http.post("/v1/files?q=canary-query", headers=headers, content=b"canary-body")
        said += [str(answer.headers), answer.text]
    for path, extra in (
        ("/v1/models", {"Host": "evil.example"}),
        ("/v1/models", {"Origin": "https://evil.example"}),
        ("/v1/models", {"Authorization": "Bearer canary-wrong", "X-Api-Key": "canary-client-key"}),
        ("/v1/v1/models?canary-query", {}),
        ("/nothing?canary-query", {}),
        ("/health", {}),
        ("/health?deep=1", {}),
        ("/metrics", {}),
    ):
        answer = proxy.http.get(path, headers=CLIENT_SECRETS | extra)
        said += [str(answer.headers), answer.text]
    host, port = proxy.url.removeprefix("http://").split(":")
    for garbage in (b"canary-body \x00\r\n\r\n", b"GET /v1/x HTTP/1.1\r\nX: canary-body\x01\r\n\r\n"):
        with socket.create_connection((host, int(port)), 10) as raw:
            raw.sendall(garbage)
            said.append(raw.recv(65536).decode("latin-1"))
    for fault in ("malformed", "502-html"):
        sim.http.post("/_sim/token-faults", json={"kind": fault, "times": 1}).raise_for_status()
    sim.http.post("/_sim/revoke").raise_for_status()
    said.append(proxy.http.get("/v1/models", headers=CLIENT_SECRETS).text)
    return said


def test_nothing_that_is_emitted_holds_a_secret(home: Home, own_sim: Sim) -> None:
    """Debug logs, answers, health, metrics and the process list hold no token, key, body or query."""
    home.write_store(provider_store(own_sim.login(access_lifetime=6)))
    secrets = tokens_of_login(home)
    with proxy_running(home, own_sim, PROXY_API_KEY=KEY, LOG_LEVEL="debug") as proxy:
        named = {"name": "me", "sha256": DIGEST, "added_at": "2026-07-20T12:00:00Z"}
        home.state.with_name("keys.json").write_text(json.dumps({"version": 1, "keys": [named]}))
        own_sim.http.get("/_sim/wait?counter=refreshes&n=1&timeout=10", timeout=15)
        proxy.err.wait_for("The access token was refreshed")
        said = talk(proxy, own_sim)
        secrets |= tokens_of(home)
        said.append(run(environment(home), "keys", "list").stdout)
        assert 'proxy_key_requests_total{key="me",status="2xx"}' in "".join(said)
        said.append(Path(f"/proc/{proxy.process.pid}/cmdline").read_text())
        proxy.stop()
        said += [proxy.err.text(), proxy.process.stdout.read() if proxy.process.stdout else ""]
    everything = "\n".join(said)
    assert len(secrets) >= 6
    assert len(everything) > 5000
    # What the client itself sent is no news to it, but must not be in what we emit either.
    leaked = {secret[:12] for secret in secrets | CANARIES if secret in everything}
    assert leaked == set()


def tokens_of_login(home: Home) -> set[str]:
    tokens = home.read_store()["providers"]["xai-oauth"]["tokens"]
    return {tokens["access_token"], tokens["refresh_token"], tokens["id_token"]}


def test_files_are_private(home: Home, own_sim: Sim) -> None:
    """Everything in the state folder is 0600, whatever the umask was."""
    home.write_store(provider_store(own_sim.login()))
    before = os.umask(0)
    try:
        with proxy_running(home, own_sim):
            modes = {path.name: path.stat().st_mode & 0o777 for path in home.state.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes["auth_state.json"] == 0o600
    assert set(modes.values()) == {0o600}
    assert home.state.parent.stat().st_mode & 0o777 == 0o700


def test_refused_start_holds_no_secret(home: Home, own_sim: Sim) -> None:
    """A refused start prints neither tokens nor the key."""
    home.write_store(provider_store(own_sim.login()))
    home.auth.write_text(home.auth.read_text()[:-40])
    ended = run(environment(home, own_sim, PROXY_API_KEY=KEY))
    assert ended.returncode == 3
    assert not any(part in ended.stderr for part in ("eyJ", KEY))
