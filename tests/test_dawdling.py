"""Who dawdles, and who does not although it looks like it: against real proxies that have no place left."""

from __future__ import annotations

import signal
import socket
import time
from http.client import HTTPResponse

from tests.harness import PATIENCE, Home, provider_store, proxy_running
from tests.sim.harness import Sim
from tests.slow import asked, in_flight, question

GET = b"GET /v1/echo HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPLOAD = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
GRACE = 1.0
"""Seconds that an upload is let alone for, whatever it does."""


def status(sock: socket.socket) -> int:
    response = HTTPResponse(sock)
    response.begin()
    return response.status


def test_an_answer_behind_another(home: Home, own_sim: Sim) -> None:
    """Who asks again and again and takes no answer loses the place, whichever answer it is that waits."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_MAX_CONNECTIONS=1, PROXY_BODY_TIMEOUT=0.5) as proxy:
        proxy.http.close()  # it would take the place
        with asked(proxy, 400 * question(words=3000, stream=False)):
            deadline = time.monotonic() + PATIENCE
            got = 0
            while got != 200:
                assert time.monotonic() < deadline
                with asked(proxy, GET) as sock:
                    got = status(sock)
                assert got in (200, 503)


def test_a_proxy_that_stood_still(home: Home, own_sim: Sim) -> None:
    """An upload that came on, and was not read because the proxy stood still, keeps its slot."""
    home.write_store(provider_store(own_sim.login()))
    with (
        proxy_running(home, own_sim, PROXY_MAX_REQUESTS=1) as proxy,
        asked(proxy, UPLOAD) as upload,
        asked(proxy, b"") as other,
    ):
        deadline = time.monotonic() + PATIENCE
        while not in_flight(proxy):
            assert time.monotonic() < deadline
        proxy.process.send_signal(signal.SIGSTOP)
        other.sendall(GET)
        upload.sendall(b"400\r\n" + bytes(0x400) + b"\r\n")
        time.sleep(1.2 * GRACE)  # for which it must stand still
        proxy.process.send_signal(signal.SIGCONT)
        assert status(other) == 503
        upload.sendall(b"0\r\n\r\n")
        assert status(upload) == 200


def test_a_slow_reader(home: Home, own_sim: Sim) -> None:
    """Who takes an answer slowly and steadily keeps its slot, however much of it waits in buffers."""
    home.write_store(provider_store(own_sim.login()))
    with (
        proxy_running(home, own_sim, PROXY_MAX_REQUESTS=1, PROXY_BODY_TIMEOUT=2) as proxy,
        asked(proxy, question(words=200_000, stream=True)) as reader,
    ):
        ends = time.monotonic() + 6
        while time.monotonic() < ends:
            assert reader.recv(20_000)
            time.sleep(0.05)  # its pace is what is tested
            with asked(proxy, GET) as sock:
                assert status(sock) == 503
