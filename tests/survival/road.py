"""The way to xAI: a relay that can be closed for a while, or led to a captive portal."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.harness import PATIENCE

PORTAL = b"<html><title>Welcome</title>Sign in to the hotel's network</html>"
_HEADS = {
    200: b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n",
    302: b"HTTP/1.1 302 Found\r\nlocation: http://portal.example/\r\ncontent-type: text/html\r\n",
}


@dataclass
class Road:
    """Leads from `url` to `destination` (ports on loopback), unless it is told otherwise."""

    destination: int
    portal: int | None = None
    """The status of the page that stands in for every answer."""
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _ends: set[socket.socket] = field(default_factory=set)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port: int = self._listener.getsockname()[1]
        self._accept()

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    @classmethod
    @contextmanager
    def to(cls, destination: int) -> Iterator[Road]:
        road = cls(destination)
        try:
            yield road
        finally:
            road.close()
            for thread in road._threads:
                thread.join(PATIENCE)

    def close(self) -> None:
        """Cut everything; new connections are refused."""
        with suppress(OSError):  # it may be closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def open_again(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._accept()

    def cut(self) -> None:
        """End the connections there are."""
        for end in list(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        self._start(self._serve, self._listener)

    def _start(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        thread = threading.Thread(target=work, args=(sock,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                self._start(self._lead, listener.accept()[0])

    def _lead(self, client: socket.socket) -> None:
        self._ends.add(client)
        with client, suppress(OSError):
            if self.portal:
                self._show_portal(client, self.portal)
            else:
                with socket.create_connection(("127.0.0.1", self.destination)) as server:
                    _copy(client, server)
        self._ends.discard(client)

    @staticmethod
    def _show_portal(client: socket.socket, status: int) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (chunk := client.recv(65536)):
                return
            request += chunk
        size = f"content-length: {len(PORTAL)}\r\nconnection: close\r\n\r\n".encode()
        client.sendall(_HEADS[status] + size + PORTAL)
        while client.recv(65536):
            pass


def _copy(one: socket.socket, two: socket.socket) -> None:
    """Both ways, until one side has ended."""
    other = {one: two, two: one}
    while True:
        for readable in select.select(list(other), [], [])[0]:
            if not (chunk := readable.recv(65536)):
                return
            other[readable].sendall(chunk)
