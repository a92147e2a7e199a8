"""A server that says what it is told to say: an older proxy, a stranger, a captive portal, a wrong clock."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.harness import Home


@dataclass
class Canned:
    """What every GET is answered with, and the requests that came: (path, Authorization)."""

    url: str
    status: int = 200
    body: str = "{}"
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def report(self, **fields: object) -> None:
        """Answer as the /health of a proxy does."""
        self.body = json.dumps({"provider": "xai-oauth", "status": "ok", **fields})

    def pose_as_running(self, home: Home) -> None:
        """Stand in the address file."""
        home.state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home.state.parent / "address").write_text(self.url + "\n")


@contextmanager
def canned(tls: ssl.SSLContext | None = None) -> Iterator[Canned]:
    """Serve on a free port, over TLS with `tls`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said.asked.append((self.path, self.headers.get("authorization")))
            self.send_response_only(said.status)
            for name, value in {"content-length": str(len(said.body.encode())), **said.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said.body.encode())

        def log_message(self, *_: Any) -> None:
            """Not on the tests' output."""

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            try:
                if tls is None:
                    super().finish_request(request, client_address)
                    return
                with tls.wrap_socket(request, server_side=True) as secured:
                    super().finish_request(secured, client_address)
            except OSError:
                return  # a client that trusts nobody here

    with Server(("127.0.0.1", 0), Handler) as server:
        scheme = "https" if tls else "http"
        said = Canned(f"{scheme}://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield said
        finally:
            server.shutdown()
            thread.join()


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
