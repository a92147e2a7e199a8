"""The process: start, options, and end."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import trustme

from .harness import claims, client, running

SOURCE = Path(__file__).parents[2] / "src" / "grok_oauth_proxy" / "sim"


def test_imports_nothing_else() -> None:
    """Loading the simulator loads no other part of the package."""
    code = (
        "import sys, grok_oauth_proxy.sim.server; print([m for m in sys.modules if m[:10] == 'grok_oauth'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = {name.strip(" '[]\n") for name in found.split(",")}
    assert names - {"grok_oauth_proxy"} == {name for name in names if name.startswith("grok_oauth_proxy.sim")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_quickly_and_cleanly(number: signal.Signals) -> None:
    """A signal cuts open streams, prints nothing, and the exit code is 0."""
    with running() as sim:
        headers = sim.bearer(x_sim="hang")
        with sim.http.stream(
            "POST", "/v1/responses", json={"stream": True, "input": "a"}, headers=headers
        ) as reply:
            pieces = reply.iter_raw()
            next(pieces)
            started = time.monotonic()
            os.kill(sim.pid, number)
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                list(pieces)
        assert sim.process.wait(5) == 0
        assert time.monotonic() - started < 2
        assert sim.process.stdout
        assert sim.process.stderr
        assert sim.process.stdout.read() + sim.process.stderr.read() == ""


def test_options() -> None:
    """Issuer, lifetime and device approval follow the command line."""
    options = (
        "--public-issuer",
        "https://auth.x.ai/",
        "--access-lifetime",
        "900",
        "--device-approval",
        "manual",
    )
    with running(*options, "--grace", "60") as sim:
        assert sim.http.get("/.well-known/openid-configuration").json()["token_endpoint"] == (
            "https://auth.x.ai/oauth2/token"
        )
        reply = sim.login()
        assert (claims(reply["access_token"])["iss"], reply["expires_in"]) == ("https://auth.x.ai", 900)
        config = sim.http.get("/_sim/state").json()["config"]
        assert (config["device_approval"], config["grace"]) == ("manual", 60)


def test_tls(tmp_path: Path) -> None:
    """With a certificate it speaks TLS, and cuts are visible there as well."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key, root = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "root.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(root))
    with (
        running("--tls-cert", str(cert), "--tls-key", str(key)) as sim,
        client(sim.url, tls=ssl.create_default_context(cafile=str(root))) as http,
    ):
        assert sim.url.startswith("https://")
        token = http.post("/_sim/login").json()["access_token"]
        headers = {"authorization": f"Bearer {token}"}
        assert http.get("/v1/models", headers=headers).status_code == 200
        for cut in ("head", "body", "length"):
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                http.get("/v1/models", headers={**headers, "x-sim": f"cut={cut}"})


def test_half_a_certificate() -> None:
    """A certificate without its key is a usage error."""
    command = [sys.executable, "-m", "grok_oauth_proxy.sim", "--tls-cert", __file__]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "--tls-key" in ended.stderr


def test_room_sizes() -> None:
    """No module of the simulator grows past 400 lines."""
    sizes = {path.name: len(path.read_text().splitlines()) for path in SOURCE.glob("*.py")}
    assert max(sizes.values()) < 400, sizes
