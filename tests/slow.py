"""Clients that ask over a bare socket and are slow to take what they get."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.harness import PATIENCE, Proxy


def question(words: int, *, stream: bool) -> bytes:
    """A chat request whose answer has so many words, as fast as they go."""
    text = json.dumps({"model": "grok-4", "stream": stream, "messages": [{"role": "user", "content": "x"}]})
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}x-sim: words={words};chunk-delay=0\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()


@contextmanager
def asked(proxy: Proxy, request: bytes) -> Iterator[socket.socket]:
    """A client with small buffers that has sent as much of this as is taken."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        host, _, port = proxy.url.removeprefix("http://").partition(":")
        sock.connect((host, int(port)))
        sock.settimeout(0.5)  # after which nobody takes any more
        with suppress(TimeoutError):
            sock.sendall(request)
        sock.settimeout(PATIENCE)
        yield sock


def in_flight(proxy: Proxy) -> int:
    """Requests besides the one that asks."""
    return int(proxy.metric("proxy_requests_in_flight")) - 1
