"""The way out: what was accepted is answered, and a refresh in flight always ends."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.harness import PATIENCE, Home, Proxy, provider_store, proxy_running
from tests.sim.harness import Sim, client


@pytest.mark.parametrize(
    "second", [None, signal.SIGTERM, signal.SIGINT], ids=["once", "term-again", "ctrl-c-again"]
)
def test_refresh_in_flight_ends(home: Home, own_sim: Sim, second: signal.Signals | None) -> None:
    """A refresh whose answer is still to come when the daemon is ended is awaited, and saved."""
    home.write_store(provider_store(own_sim.login(access_lifetime=2)))
    before = home.refresh_tokens()
    own_sim.http.post("/_sim/token-faults", json={"kind": "slow=4", "times": 1}).raise_for_status()
    with proxy_running(home, own_sim) as proxy:
        own_sim.http.get("/_sim/wait?counter=refreshes&n=1&timeout=10", timeout=15)
        proxy.process.send_signal(signal.SIGTERM)
        if second:
            with pytest.raises(Exception, match="timed out"):
                proxy.process.wait(0.5)
            proxy.process.send_signal(second)
        assert proxy.process.wait(PATIENCE) == 0
        assert "Traceback" not in proxy.err.text()
    assert home.refresh_tokens() != before
    assert own_sim.refresh(home.refresh_tokens().pop()).status_code == 200


def test_streams_are_finished(home: Home, own_sim: Sim) -> None:
    """A stream that is open when SIGTERM comes is delivered to its end."""
    home.write_store(provider_store(own_sim.login()))
    question = {"model": "grok-4", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    texts: list[str] = []
    with proxy_running(home, own_sim) as proxy:
        opened = threading.Barrier(5)

        def read_stream() -> None:
            slow = {"x-sim": "chunk-delay=0.1"}
            with (
                client(proxy.url, timeout=PATIENCE) as http,
                http.stream("POST", "/v1/chat/completions", json=question, headers=slow) as answer,
            ):
                lines = answer.iter_lines()
                first = next(lines)
                opened.wait(PATIENCE)
                texts.append("\n".join([first, *lines]))

        readers = [threading.Thread(target=read_stream) for _ in range(4)]
        for reader in readers:
            reader.start()
        opened.wait(PATIENCE)
        assert proxy.stop() == 0
        for reader in readers:
            reader.join()
    assert [text.rstrip().endswith("data: [DONE]") for text in texts] == [True] * 4


QUESTION = {"model": "grok-4", "stream": True, "messages": [{"role": "user", "content": "x"}]}
ENDING = r"Ending: open answers \(1\)"


@contextmanager
def stream_opened(proxy: Proxy, chunk_delay: float) -> Iterator[Iterator[str]]:
    """An event stream of the API, its first line read; the lines that are still to come."""
    slow = {"x-sim": f"chunk-delay={chunk_delay}"}
    with (
        client(proxy.url, timeout=PATIENCE) as http,
        http.stream("POST", "/v1/chat/completions", json=QUESTION, headers=slow) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        yield lines


def test_draining(home: Home, own_sim: Sim) -> None:
    """While answers are open no connection is accepted, and those there are may ask: health says draining."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        assert proxy.http.get("/health").json()["status"] == "ok"
        with stream_opened(proxy, 0.2) as lines:
            proxy.process.send_signal(signal.SIGTERM)
            proxy.err.wait_for(ENDING)
            with pytest.raises(ConnectionRefusedError):
                proxy.dial()
            answer = proxy.http.get("/health")
            assert (answer.status_code, answer.json()["status"]) == (503, "draining")
            assert answer.headers["connection"] == "close"
            assert [*lines][-2:] == ["data: [DONE]", ""]
        assert proxy.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("again", [False, True], ids=["over", "told-again"])
def test_drain_ends(home: Home, own_sim: Sim, again: bool) -> None:
    """An answer still open when its time is over, or when the proxy is told again, shows that it was cut."""
    home.write_store(provider_store(own_sim.login()))
    with (
        proxy_running(home, own_sim, PROXY_DRAIN_TIMEOUT=PATIENCE * 2 if again else 0.5) as proxy,
        stream_opened(proxy, 30) as lines,
    ):
        proxy.process.send_signal(signal.SIGTERM)
        proxy.err.wait_for(ENDING)
        if again:
            proxy.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
        assert proxy.process.wait(PATIENCE) == 0


def test_cut_shows(home: Home, own_sim: Sim) -> None:
    """An answer that ends with its connection, as HTTP/1.0 has it, is cut by a reset: an end looks whole."""
    home.write_store(provider_store(own_sim.login()))
    body = json.dumps(QUESTION).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"x-sim: chunk-delay=30\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with proxy_running(home, own_sim, PROXY_DRAIN_TIMEOUT=PATIENCE * 2) as proxy, proxy.dial() as sock:
        sock.sendall(head.encode() + body)
        assert sock.recv(12) == b"HTTP/1.1 200"
        proxy.process.send_signal(signal.SIGTERM)
        proxy.err.wait_for(ENDING)
        proxy.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError), sock.makefile("rb") as answer:
            answer.read()
        assert proxy.process.wait(PATIENCE) == 0


def test_drain_under_load(home: Home, own_sim: Sim) -> None:
    """No request is cut when the proxy is told to end: it is answered whole, or its connection refused."""
    home.write_store(provider_store(own_sim.login()))
    own_sim.patch(chunk_delay=0.01)
    whole: Counter[str] = Counter()
    cut: list[str] = []
    told = threading.Event()

    def ask(kind: str, keep: bool) -> None:
        headers = {} if keep else {"connection": "close"}
        with client(proxy.url, timeout=PATIENCE) as http:
            while True:
                late = "after" if told.is_set() else "before"
                try:
                    if kind == "stream":
                        text = http.post("/v1/chat/completions", json=QUESTION, headers=headers).text
                        assert text.rstrip().endswith("data: [DONE]")
                    else:
                        assert http.get("/v1/models", headers=headers).status_code == 200
                except httpx.ConnectError:
                    return
                except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
                    cut.append(f"{kind}, keep={keep}: {error!r}")
                    return
                whole[f"{kind} {late}"] += 1

    with proxy_running(home, own_sim, PROXY_DRAIN_TIMEOUT=PATIENCE) as proxy:
        clients = [
            threading.Thread(target=ask, args=(kind, keep))
            for kind in ("stream", "short")
            for keep in (True, False)
            for _ in range(6)
        ]
        for thread in clients:
            thread.start()
        while whole["stream before"] < 30:
            assert proxy.process.poll() is None
            time.sleep(0.01)
        told.set()
        assert proxy.stop() == 0
        for thread in clients:
            thread.join(PATIENCE)
    print(f"Answered whole: {dict(whole)}. Cut: {len(cut)}.")  # noqa: T201 - shown by pytest -s
    assert not cut
    assert whole["stream before"] >= 30
