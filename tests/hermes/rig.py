"""The real Hermes and the proxy, both with their production settings, against the simulator.

Hermes insists on https://auth.x.ai and runs unmodified, so the simulator speaks TLS with a certificate for
xAI's names, and a CONNECT proxy, which both programs find in HTTPS_PROXY, leads those names to it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import select
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import trustme

from tests.harness import PATIENCE, Home, Json, Output, Proxy, start
from tests.sim.harness import Sim, client, running

Shape = Literal["provider", "pool"]
SHAPES: tuple[Shape, ...] = ("provider", "pool")

REFRESHED = "The access token was refreshed"
ADOPTED = "Tokens written by hermes are now in use"

LONG_LIFE = 21600.0
SHORT_LIFE = 1.0
"""Seconds. The proxy finds such a token due for a refresh within the second."""

XAI_HOSTS = ("auth.x.ai", "api.x.ai")
_DRIVER = Path(__file__).with_name("driver.py")


@dataclass(frozen=True)
class Certificates:
    """A certificate for xAI's names and for the loopback address, and who vouches for it."""

    authority: Path
    chain: Path
    key: Path

    @classmethod
    def issue(cls, folder: Path) -> Certificates:
        authority = trustme.CA()
        issued = authority.issue_cert(*XAI_HOSTS, "127.0.0.1")
        made = cls(folder / "authority.pem", folder / "chain.pem", folder / "key.pem")
        authority.cert_pem.write_to_path(str(made.authority))
        made.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(made.key))
        return made


class Tunnels(socketserver.ThreadingTCPServer):
    """A CONNECT proxy (RFC 9110 §9.3.6) that knows xAI's two hosts and leads them to `destination`."""

    block_on_close = True
    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.destination: int | None = None
        self.opened: set[str] = set()
        self.refused: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def routes(self) -> set[str]:
        return {f"{host}:443" for host in XAI_HOSTS}

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Tunnels]:
        """Serve in a thread; on the way out each tunnel must be at its end, so who uses them ends before."""
        with cls() as tunnels:
            thread = threading.Thread(target=tunnels.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                yield tunnels
            finally:
                tunnels.shutdown()
                thread.join()


class _Tunnel(socketserver.StreamRequestHandler):
    server: Tunnels
    rbufsize = 0  # what follows the head belongs to the tunnel
    disable_nagle_algorithm = True

    def handle(self) -> None:
        method, _, rest = self.rfile.readline().decode("latin-1").partition(" ")
        while self.rfile.readline().strip():
            pass
        target = rest.split(" ")[0]
        if method != "CONNECT" or target not in self.server.routes or self.server.destination is None:
            self.server.refused.add(target)
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            return
        self.server.opened.add(target)
        with (
            suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", self.server.destination)) as upstream,
        ):
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._copy(upstream)

    def _copy(self, upstream: socket.socket) -> None:
        """Both ways, until one side has ended."""
        other = {self.connection: upstream, upstream: self.connection}
        while True:
            for readable in select.select(list(other), [], [])[0]:
                if not (chunk := readable.recv(65536)):
                    return
                other[readable].sendall(chunk)


@dataclass
class Driver:
    """A process of Hermes' own code: see driver.py."""

    process: subprocess.Popen[str]
    out: Output
    err: Output

    def do(self, command: str) -> Json:
        """Send a command and return the answer; fails when Hermes did."""
        answered = len(self.out.lines)
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        self.out.wait_for("^{", after=answered)
        answer: Json = json.loads(self.out.lines[answered])
        assert "error" not in answer, f"{command}: {answer['error']}\n" + "\n".join(self.err.lines)
        return answer

    def refresh(self) -> str:
        """Hermes' forced refresh; the access token it got."""
        return str(self.do("refresh")["access_token"])

    def resolve(self) -> str:
        """The access token Hermes would use now."""
        return str(self.do("resolve")["access_token"])


@dataclass
class Rig:
    """One person's machine: a home, Hermes in its own environment, and the way to the simulated xAI."""

    sim: Sim
    home: Home
    hermes_bin: Path
    tunnels: Tunnels
    egress: dict[str, str] = field(default_factory=dict)
    """HTTPS_PROXY and SSL_CERT_FILE."""

    @property
    def hermes_environment(self) -> dict[str, str]:
        return {**self.egress, "HOME": str(self.home.path), "HERMES_HOME": str(self.home.auth.parent)}

    def hermes(self, *arguments: str) -> str:
        """Run Hermes' command line to its end and return what it printed; fails when it did."""
        ended = subprocess.run(
            [self.hermes_bin / "hermes", *arguments],
            env=self.hermes_environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    @contextmanager
    def driver(self, shape: Shape) -> Iterator[Driver]:
        command = [str(self.hermes_bin / "python"), "-P", str(_DRIVER), shape]
        with subprocess.Popen(
            command,
            env=self.hermes_environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield Driver(process, Output(process.stdout), Output(process.stderr))
            finally:
                process.terminate()
                process.wait(PATIENCE)

    def login(self, shape: Shape) -> None:
        """Sign in by Hermes' own code, leaving the shape behind that this way of signing in leaves."""
        if shape == "pool":
            self.hermes("auth", "add", "xai-oauth", "--no-browser")
            return
        with self.driver("provider") as driver:
            driver.do("login")

    def proxy_environment(self, **settings: object) -> dict[str, str]:
        """All that the proxy is told: how to leave the machine, where Hermes is, and to take a free port."""
        env = {**self.egress, "HOME": str(self.home.path), "PATH": str(self.hermes_bin), "PROXY_PORT": "0"}
        return env | {name: str(value) for name, value in settings.items()}

    @contextmanager
    def proxy(self, **settings: object) -> Iterator[Proxy]:
        """`serve`, ready; ended by its id on the way out."""
        with start(self.proxy_environment(**settings)) as process:
            err = Output(process.stderr)
            try:
                url = err.wait_for(r"ready: (http://\S+)/v1")[1]
                with client(url, timeout=PATIENCE) as http:
                    yield Proxy(url, self.home, http, process, err)
            finally:
                process.terminate()
                process.wait(PATIENCE)

    def wait_for(self, counter: str, at_least: int) -> None:
        """Wait until a counter of the simulator is there."""
        query: dict[str, Any] = {"counter": counter, "n": at_least, "timeout": PATIENCE}
        answer = self.sim.http.get("/_sim/wait", params=query, timeout=PATIENCE + 5).json()
        assert answer["reached"], answer


@contextmanager
def as_xai(certificates: Certificates) -> Iterator[Sim]:
    """A simulator that answers as https://auth.x.ai and https://api.x.ai."""
    tls = ssl.create_default_context(cafile=str(certificates.authority))
    options = ("--tls-cert", str(certificates.chain), "--tls-key", str(certificates.key))
    with (
        running("--public-issuer", "https://auth.x.ai", *options) as sim,
        client(sim.url, timeout=PATIENCE, tls=tls) as http,
    ):
        yield dataclasses.replace(sim, http=http)


@contextmanager
def rigged(folder: Path, certificates: Certificates, hermes_bin: Path, xai: Sim) -> Iterator[Rig]:
    """A rig with a home in `folder`, nobody signed in yet."""
    with Tunnels.open() as tunnels:
        tunnels.destination = xai.http.base_url.port
        egress = {"HTTPS_PROXY": tunnels.url, "SSL_CERT_FILE": str(certificates.authority)}
        yield Rig(xai, Home(folder), hermes_bin, tunnels, egress)


def line_after(output: Output, pattern: str, after: int) -> int:
    """Wait for a line that matches; the number of the line behind it."""
    output.wait_for(pattern, after=after)
    numbered = enumerate(list(output.lines))
    return next(n for n, line in numbered if n >= after and re.search(pattern, line)) + 1


def wait_until_fresh(proxy: Proxy, after: int) -> None:
    """Wait until the proxy has got a token that lives for hours."""
    line_after(proxy.err, r"The access token was refreshed; the new one lives 2\d{4} s", after)


def wait_until_in_use(proxy: Proxy, refresh_token: str) -> None:
    """Wait until the proxy has adopted this token: its state file is written after that."""
    deadline = time.monotonic() + PATIENCE
    while refresh_token not in proxy.home.state.read_text():
        assert time.monotonic() < deadline, "\n".join(proxy.err.lines)
        proxy.health()


def chat(proxy: Proxy) -> str:
    """What the model answers to a greeting; fails when the request did."""
    question = {"model": "grok-4", "messages": [{"role": "user", "content": "hello"}]}
    answer = proxy.http.post("/v1/chat/completions", json=question)
    assert answer.status_code == 200, "\n".join([answer.text, *proxy.err.lines])
    return str(answer.json()["choices"][0]["message"]["content"])
