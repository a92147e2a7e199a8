"""The simulator as a test sees it: a process, its URL, and a client for both."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

Json = dict[str, Any]
CLIENT = "sim-client-0001"
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx takes 30 ms to load those it brings along


@dataclass(frozen=True)
class Sim:
    """A running simulator."""

    url: str
    pid: int
    http: httpx.Client
    process: subprocess.Popen[str]

    def login(self, **fields: object) -> Json:
        """The token reply of a new grant."""
        reply: Json = self.http.post("/_sim/login", json=fields).raise_for_status().json()
        return reply

    def bearer(self, **directives: str) -> dict[str, str]:
        """Headers with a fresh token, and an x-sim header if `x_sim` is given."""
        headers = {"authorization": f"Bearer {self.login()['access_token']}"}
        if "x_sim" in directives:
            headers["x-sim"] = directives["x_sim"]
        return headers

    def counters(self) -> dict[str, int]:
        counters: dict[str, int] = self.http.get("/_sim/state").json()["counters"]
        return counters

    def reset(self) -> None:
        """To its first state, once nothing of those who spoke to it before is going on any more."""
        for counter in ("open_requests", "open_token_requests"):
            until = {"counter": counter, "max": 0, "timeout": 30}
            assert self.http.get("/_sim/wait", params=until, timeout=40).json()["reached"]
        self.http.post("/_sim/reset").raise_for_status()

    def patch(self, **changes: object) -> None:
        self.http.patch("/_sim/config", json=changes).raise_for_status()

    def requests(self) -> list[Json]:
        recorded: list[Json] = self.http.get("/_sim/requests").json()
        return recorded

    def token(self, grant_type: str, **fields: str) -> httpx.Response:
        """A token request of the default client."""
        return self.http.post("/oauth2/token", data={"client_id": CLIENT, "grant_type": grant_type, **fields})

    def refresh(self, refresh_token: str, **fields: str) -> httpx.Response:
        return self.token("refresh_token", refresh_token=refresh_token, **fields)

    def status_of(self, access_token: str) -> int:
        """What the API answers to this access token."""
        return self.http.get("/v1/me", headers={"authorization": f"Bearer {access_token}"}).status_code


def claims(token: str) -> Json:
    """The claims of a JWT."""
    segment = token.split(".")[1]
    decoded: Json = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return decoded


def client(url: str, timeout: float = 5.0, tls: ssl.SSLContext = NO_CERTIFICATES) -> httpx.Client:
    """A client with connections of its own that follows no environment proxy; `timeout` in seconds."""
    return httpx.Client(base_url=url, trust_env=False, timeout=timeout, verify=tls)


@contextmanager
def running(*options: str) -> Iterator[Sim]:
    """A simulator process of its own; its exit code is checked by whoever ends it early."""
    command = [sys.executable, "-m", "grok_oauth_proxy.sim", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            announced = json.loads(process.stdout.readline())
            with client(announced["url"]) as http:
                yield Sim(announced["url"], announced["pid"], http, process)
        finally:
            process.terminate()
            process.wait(10)
