"""The processes of a run: the upstreams, what stands before them, and how they are ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import trustme

ANSWER = json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "text": "x" * 640})
QUESTION = json.dumps({"model": "grok-4", "messages": [{"role": "user", "content": "y" * 1620}]})
TOOLS = {"nginx": "nginx-light", "caddy": "caddy", "wrk": "wrk", "curl": "curl"}
"""What is run, and the Debian package it comes from."""


@dataclass(frozen=True)
class Target:
    """Something to measure: where it listens, and the process that does the work, if there is one."""

    name: str
    url: str
    process: subprocess.Popen[bytes] | None = None

    def cpu_seconds(self) -> float:
        """What the process and its children have used so far."""
        ticks = sum(_ticks(pid) for pid in self._family())
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._family())
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _family(self) -> list[int]:
        if self.process is None:
            return []
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def tool(name: str) -> str | None:
    """The path of a tool; Debian keeps nginx where only root's PATH looks."""
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended by its id; its output goes to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env={"PATH": os.environ["PATH"], **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_open(url: str) -> None:
    host, port = httpx.URL(url).host, httpx.URL(url).port
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection((host, port or 0), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url} did not come up.") from None
            time.sleep(0.02)
        else:
            return


class Stage:
    """Everything of a run, in `folder`; leaving it ends every process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        authority = trustme.CA()
        self._authority = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self._authority))
        self.certificate = folder / "server.pem"
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(self.certificate)
        )
        self.trust = {"SSL_CERT_FILE": str(self._authority)}

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str, command: list[str], url: str, **env: str) -> Target:
        process = self._stack.enter_context(running(command, env, self.folder / f"{name}.log"))
        wait_until_open(url)
        return Target(name, url, process)

    def upstream(self) -> Target:
        """nginx, which answers every request with 0.7 KB over TLS."""
        port = free_port()
        return self._nginx(
            "upstream",
            f"https://localhost:{port}",
            f"""
            server {{
              listen 127.0.0.1:{port} ssl;
              ssl_certificate {self.certificate}; ssl_certificate_key {self.certificate};
              keepalive_requests 100000000; keepalive_timeout 600s;
              location / {{ default_type application/json; return 200 '{ANSWER}'; }}
            }}""",
        )

    def nginx(self, upstream: str) -> Target:
        port = free_port()
        return self._nginx(
            "nginx",
            f"http://127.0.0.1:{port}",
            f"""
            upstream api {{
              server {upstream.removeprefix("https://")}; keepalive 1100; keepalive_requests 100000000;
            }}
            server {{
              listen 127.0.0.1:{port}; keepalive_requests 100000000;
              location / {{
                proxy_pass https://api; proxy_http_version 1.1; proxy_buffering off;
                proxy_set_header Connection "";
                proxy_set_header Authorization "Bearer x"; proxy_ssl_name localhost; proxy_ssl_server_name on;
                proxy_ssl_verify on; proxy_ssl_trusted_certificate {self._authority};
                proxy_read_timeout 3600s;
              }}
            }}""",
        )

    def _nginx(self, name: str, url: str, servers: str) -> Target:
        config = self.folder / f"{name}.conf"
        scratch = " ".join(
            f"{kind}_temp_path {self.folder}/{name}-{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"daemon off; worker_processes auto; pid {self.folder}/{name}.pid; error_log stderr error;\n"
            f"events {{ worker_connections 8192; }}\n"
            f"http {{ access_log {self.folder}/{name}-access.log; {scratch} client_max_body_size 0;\n"
            f"{servers} }}\n"
        )
        command = [tool("nginx") or "nginx", "-p", str(self.folder), "-c", str(config)]
        return self.start(name, command, url)

    def caddy(self, upstream: str) -> Target:
        port = free_port()
        config = self.folder / "Caddyfile"
        config.write_text(
            f"{{\n admin off\n auto_https off\n"
            f" log {{\n output file {self.folder}/caddy-access.log\n }}\n}}\n"
            f"http://:{port} {{\n bind 127.0.0.1\n log {{\n output file {self.folder}/caddy-access.log\n }}\n"
            f' reverse_proxy {upstream} {{\n header_up Authorization "Bearer x"\n flush_interval -1\n'
            f"  transport http {{\n tls_trusted_ca_certs {self._authority}\n tls_server_name localhost\n"
            f"   keepalive_idle_conns_per_host 1100\n compression off\n  }}\n }}\n}}\n"
        )
        command = [tool("caddy") or "caddy", "run", "--config", str(config), "--adapter", "caddyfile"]
        home = str(self.folder)
        return self.start("caddy", command, f"http://127.0.0.1:{port}", HOME=home, XDG_DATA_HOME=home)

    def obvious(self, upstream: str) -> Target:
        return self._script("obvious", "bench_reference.py", upstream)

    def probe(self, upstream: str) -> Target:
        return self._script("a bare probe", "bench_probe.py", upstream)

    def _script(self, name: str, script: str, upstream: str) -> Target:
        port = free_port()
        path = Path(__file__).parent.parent / script
        env = {**self.trust, "UPSTREAM": upstream, "PORT": str(port)}
        return self.start(name, [sys.executable, str(path)], f"http://127.0.0.1:{port}", **env)

    def issuer(self) -> str:
        """The simulated xAI, of which only the authorization server is used; tokens live an hour."""
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "grok_oauth_proxy.sim",
            "--port",
            str(port),
            "--access-lifetime",
            "3600",
        ]
        return self.start("issuer", command, f"http://127.0.0.1:{port}").url

    def ours(
        self,
        upstream: str,
        issuer: str,
        name: str = "ours",
        *,
        workers: int = 1,
        entry: tuple[str, ...] = ("grok_oauth_proxy", "serve"),
        **more: str,
    ) -> Target:
        """The proxy through its normal entry point, metrics and logging on; `more` is its environment."""
        port = free_port()
        env = {
            **more,
            **self.trust,
            **self.home(name, issuer),
            "XAI_BASE_URL": f"{upstream}/v1",
            "PROXY_PORT": str(port),
            "PROXY_WORKERS": str(workers),
        }
        command = [sys.executable, "-m", *entry]
        return self.start(name, command, f"http://127.0.0.1:{port}", **env)

    def home(self, name: str, issuer: str) -> dict[str, str]:
        """A home of its own with a new login, and the settings that lead to it."""
        home = self.folder / f"home-{name}"
        hermes = home / ".hermes"
        hermes.mkdir(parents=True, mode=0o700)
        tokens = httpx.post(f"{issuer}/_sim/login", json={}, trust_env=False).json()
        store = {
            "version": 1,
            "providers": {"xai-oauth": {"tokens": tokens, "auth_mode": "oauth_device_code"}},
        }
        (hermes / "auth.json").write_text(json.dumps(store))
        (hermes / "auth.json").chmod(0o600)
        return {
            "HOME": str(home),
            "HERMES_CLI_REQUIRED": "false",
            "GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM": "true",
            "XAI_OAUTH_ISSUER": issuer,
        }
