"""How many connections there may be, and how long one may take: against a real proxy, over real sockets."""

from __future__ import annotations

import itertools
import json
import resource
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse, IncompleteRead, parse_headers
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.clients.waiting import wait_for_counter
from tests.harness import PATIENCE, Home, Proxy, before_bare_api, provider_store, proxy_running
from tests.sim.harness import Sim

GET = b"GET /v1/echo HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPLOAD = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n%b\r\n5\r\nhello\r\n"
HANGING = b"GET /v1/echo HTTP/1.1\r\nHost: localhost\r\nX-Sim: hang\r\n\r\n"
SLOW_HEAD, SLOW_BODY = 0.4, 0.8
LARGEST = 100_000


@pytest.fixture(scope="module")
def strict(shared_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that waits for little, and not for long."""
    home = Home(tmp_path_factory.mktemp("strict"))
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(
        home,
        shared_sim,
        PROXY_HEAD_TIMEOUT=SLOW_HEAD,
        PROXY_BODY_TIMEOUT=SLOW_BODY,
        PROXY_MAX_BODY=LARGEST,
    ) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def _small(shared_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    home = Home(tmp_path_factory.mktemp("small"))
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(
        home,
        shared_sim,
        LOG_FORMAT="json",
        PROXY_MAX_CONNECTIONS=6,
        PROXY_MAX_CONNECTIONS_PER_CLIENT=4,
        PROXY_HEAD_TIMEOUT=600,  # on a busy machine a test may last
    ) as proxy:
        proxy.http.close()  # it would take a place
        yield proxy


@pytest.fixture
def small(_small: Proxy) -> Proxy:
    """A proxy with room for six connections, and for four of one client; nobody is there yet."""
    deadline = time.monotonic() + PATIENCE
    while occupied(_small):
        assert time.monotonic() < deadline
    return _small


def occupied(proxy: Proxy) -> int:
    """Its ends of connections, as the system sees them: established, or closed by the client alone."""
    here, states = f":{int(proxy.url.rsplit(':', 1)[1]):04X}", ("01", "08")
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(line[1].endswith(here) and line[3] in states for line in lines)


@contextmanager
def dialled(proxy: Proxy, client: str = "127.0.0.1", sent: bytes = b"") -> Iterator[socket.socket]:
    """A connection from the address `client`, on which something was sent."""
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), PATIENCE, (client, 0)) as sock:
        sock.sendall(sent)
        yield sock


def answer(sock: socket.socket) -> HTTPResponse:
    """The next answer on it."""
    response = HTTPResponse(sock)
    response.begin()
    return response


def refusal(sock: socket.socket) -> tuple[int, str]:
    """Status and code of the last answer on it, behind which it ends."""
    response = answer(sock)
    assert response.headers["connection"] == "close"
    code: str = json.loads(response.read())["error"]["code"]
    assert sock.recv(1) == b""
    return response.status, code


def echo(sock: socket.socket) -> int:
    """Ask on it; the status."""
    sock.sendall(GET)
    response = answer(sock)
    response.read()
    return response.status


def is_open(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], 0)[0]


@pytest.mark.parametrize("begun", [b"G", b"GET /v1/models HTTP/1.1\r\nHost: loc", b"\r\n"])
def test_head_stalls(strict: Proxy, begun: bytes) -> None:
    """A head that does not end is answered with 408, and its connection closed."""
    with dialled(strict, sent=begun) as sock:
        assert refusal(sock) == (408, "request_timeout")


def test_head_trickles(strict: Proxy) -> None:
    """A head that comes byte by byte gets no more time for that; one that comes in pieces has its time."""
    with dialled(strict, sent=GET[:1]) as slow, dialled(strict, sent=GET[:20]) as brisk:
        brisk.sendall(GET[20:])
        began = time.monotonic()
        for byte in GET[1:]:
            if not is_open(slow):
                break
            slow.sendall(bytes([byte]))
            time.sleep(SLOW_HEAD / 10)  # the pace is what is tested
        assert answer(slow).status == 408
        assert time.monotonic() - began < 3 * SLOW_HEAD
        assert answer(brisk).status == 200


def test_idle_connections_are_kept(strict: Proxy) -> None:
    """Between requests, and before the first, a connection has more time than a head."""
    with dialled(strict) as silent, dialled(strict) as used:
        assert (echo(used), echo(used)) == (200, 200)
        with dialled(strict, sent=b"G") as sock:
            assert answer(sock).status == 408
        with dialled(strict, sent=b"G") as sock:
            assert answer(sock).status == 408
        assert is_open(silent)
        assert is_open(used)
        assert (echo(silent), echo(used)) == (200, 200)


def test_head_behind_an_answer(strict: Proxy) -> None:
    """The beginning of a head that was sent ahead has its time once the answer before it has gone out."""
    slow = GET.replace(b"\r\n\r\n", b"\r\nx-sim: delay=%f\r\n\r\n" % (2 * SLOW_HEAD))
    with dialled(strict, sent=slow + GET[:9]) as sock:
        response = answer(sock)
        response.read()
        assert response.status == 200
        assert refusal(sock) == (408, "request_timeout")


def test_body_stalls(strict: Proxy, shared_sim: Sim) -> None:
    """A body that stalls is answered with 408, and its request to the API is dropped."""
    aborted = shared_sim.counters()["aborted_requests"]
    with dialled(strict, sent=UPLOAD % b"") as sock:
        wait_for_counter(shared_sim, "open_requests", at_least=1)
        assert refusal(sock) == (408, "request_timeout")
    wait_for_counter(shared_sim, "aborted_requests", at_least=aborted + 1)


def test_body_that_stalls_is_told_once(home: Home, shared_sim: Sim) -> None:
    """One request that was ended for its body is one line, and one count, with what its client got."""
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(home, shared_sim, PROXY_BODY_TIMEOUT=SLOW_BODY) as proxy:
        with dialled(proxy, sent=UPLOAD % b"") as sock:
            assert refusal(sock) == (408, "request_timeout")
        counted = proxy.http.get("/metrics").text
        proxy.stop()
        told = [line for line in proxy.err.lines if " /metrics " not in line and "ready" not in line]
    assert [line.split()[3:6] for line in told if " 408 " in line or " 499 " in line] == [
        ["POST", "/v1/echo", "408"]
    ]
    assert 'status="499"' not in counted
    assert [line for line in counted.splitlines() if 'status="408"' in line] == [
        'proxy_requests_total{method="POST",route="other",status="408"} 1.0'
    ]


def test_body_comes_slowly(strict: Proxy) -> None:
    """A body has its time for each KiB, however long it takes in all."""
    with dialled(strict, sent=UPLOAD % b"") as sock:
        for _ in range(8):
            time.sleep(SLOW_BODY / 4)  # the pace is what is tested
            sock.sendall(b"200\r\n" + bytes(512) + b"\r\n")
        sock.sendall(b"0\r\n\r\n")
        assert json.loads(answer(sock).read())["body_length"] == 5 + 8 * 512


@pytest.mark.parametrize("trickle", [b"1\r\nx\r\n", b"1;" + b"x" * 100], ids=["bytes", "extension"])
def test_body_trickles(strict: Proxy, trickle: bytes) -> None:
    """A body that comes byte by byte, or around which bytes come, gets no more time for that."""
    with dialled(strict, sent=UPLOAD % b"") as sock:
        began = time.monotonic()
        for byte in itertools.cycle(trickle):
            if not is_open(sock):
                break
            sock.sendall(bytes([byte]))
            time.sleep(SLOW_BODY / 20)  # the pace is what is tested
        assert answer(sock).status == 408
        assert time.monotonic() - began < 3 * SLOW_BODY


def test_client_waits_to_be_asked(strict: Proxy) -> None:
    """A body that the client holds back until it is asked is no stalled one."""
    with dialled(strict, sent=(UPLOAD % b"Expect: 100-continue\r\n").partition(b"5\r\n")[0]) as sock:
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"5\r\nhello\r\n0\r\n\r\n")
        assert answer(sock).status == 200


def test_declared_size(strict: Proxy, shared_sim: Sim) -> None:
    """A body that is announced as too large is refused before any of it is sent, here or to the API."""
    before = shared_sim.counters()["api_requests"]
    head = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with dialled(strict, sent=head % (LARGEST + 1)) as sock:
        assert refusal(sock) == (413, "body_too_large")
    assert shared_sim.counters()["api_requests"] == before
    with dialled(strict, sent=head.replace(b"Expect: 100-continue\r\n", b"") % LARGEST) as sock:
        sock.sendall(bytes(LARGEST))
        assert answer(sock).status == 200


def test_size_of_chunks(strict: Proxy, shared_sim: Sim) -> None:
    """A body in chunks is refused when it passes the limit, and the API does not take it for whole."""
    aborted = shared_sim.counters()["aborted_requests"]
    chunk = b"2710\r\n" + bytes(10_000) + b"\r\n"
    with dialled(strict, sent=UPLOAD % b"" + 9 * chunk) as sock:
        wait_for_counter(shared_sim, "open_requests", at_least=1)
        sock.sendall(2 * chunk)
        assert refusal(sock) == (413, "body_too_large")
    wait_for_counter(shared_sim, "aborted_requests", at_least=aborted + 1)


def test_websockets_have_no_size(strict: Proxy) -> None:
    """What goes through a WebSocket is neither counted nor timed."""
    url = strict.url.replace("http", "ws", 1) + "/v1/realtime"
    with connect(url, proxy=None, open_timeout=PATIENCE) as talk:
        talk.recv(PATIENCE)
        with dialled(strict, sent=UPLOAD % b"") as sock:
            assert answer(sock).status == 408  # meanwhile nothing is said
        talk.send(bytes(2 * LARGEST))
        assert talk.recv(PATIENCE) == bytes(2 * LARGEST)


@pytest.fixture(scope="module")
def bare(shared_sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[socket.socket, Proxy]]:
    """An API that does nothing by itself, and a proxy before it."""
    home = Home(tmp_path_factory.mktemp("bare"))
    with before_bare_api(home, shared_sim, body_timeout=0.6) as pair:
        yield pair


def test_api_that_reads_late(bare: tuple[socket.socket, Proxy]) -> None:
    """While the API takes nothing, the client is not asked for more, and has no time to keep."""
    listener, proxy = bare
    size = 20_000_000
    head = b"PUT /v1/a HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: %d\r\n\r\n" % size
    with dialled(proxy, sent=head) as up:
        up.setblocking(False)
        sent = 0
        while select.select([], [up], [], 1.0)[1]:  # until nobody takes any more, for some time
            sent += up.send(bytes(min(1_000_000, size - sent)))
        assert sent < size
        assert is_open(up)
        api, _ = listener.accept()
        with api:
            api.settimeout(PATIENCE)
            up.settimeout(PATIENCE)
            taken = len(api.recv(65536).partition(b"\r\n\r\n")[2])
            while taken < sent:
                taken += len(api.recv(1 << 20))
            api.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            assert answer(up).read() == b"ok"


def test_body_stalls_under_an_answer(bare: tuple[socket.socket, Proxy]) -> None:
    """Where the answer has begun already, a body that stalls cuts it."""
    listener, proxy = bare
    with dialled(proxy, sent=UPLOAD % b"") as sock:
        api, _ = listener.accept()
        with api:
            api.settimeout(PATIENCE)
            assert api.recv(65536)
            api.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            response = answer(sock)
            assert (response.status, response.read(4)) == (200, b"half")
            with pytest.raises(IncompleteRead):
                response.read()
            while api.recv(65536):
                pass


def test_longest_idle_makes_room(small: Proxy) -> None:
    """When all places are taken, that which has waited longest is closed for the next."""
    with ExitStack() as stack:

        def come(client: str, sent: bytes = b"") -> socket.socket:
            return stack.enter_context(dialled(small, client, sent))

        used, *others = [come("127.0.0.2"), come("127.0.0.3"), come("127.0.0.2"), come("127.0.0.3")]
        begun = come("127.0.0.2", b"GET /v1")
        last = come("127.0.0.4")
        assert echo(last) == 200  # so the proxy has seen all before it
        assert echo(used) == 200
        assert all(is_open(sock) for sock in others)
        for number, other in enumerate(others):
            assert echo(come(f"127.0.0.{5 + number}")) == 200
            assert other.recv(1) == b""
            assert all(is_open(sock) for sock in (used, begun, *others[number + 1 :]))
        for number in range(3):
            assert echo(come(f"127.0.0.{8 + number}")) == 200
        assert (begun.recv(1), last.recv(1), used.recv(1)) == (b"", b"", b"")


def test_own_longest_idle_makes_room(small: Proxy) -> None:
    """A client that has its share loses its own, and others lose nothing."""
    with dialled(small, "127.0.0.3") as other, ExitStack() as stack:
        assert echo(other) == 200
        own = [stack.enter_context(dialled(small, "127.0.0.2")) for _ in range(5)]
        assert echo(own[4]) == 200
        assert own[0].recv(1) == b""
        assert all(is_open(sock) for sock in (other, *own[1:]))


def test_requests_are_not_cut(small: Proxy, shared_sim: Sim) -> None:
    """What is at work keeps its place: one client too often gets 429, another for whom none is left 503.

    Both are counted and logged.
    """
    aborted = shared_sim.counters()["aborted_requests"]
    with ExitStack() as stack:
        at_work = [stack.enter_context(dialled(small, client, HANGING)) for client in ["127.0.0.2"] * 4]
        wait_for_counter(shared_sim, "open_requests", at_least=4)
        for _ in range(100):  # more than are given an answer at a time
            with dialled(small, "127.0.0.2", GET) as fifth:
                response = answer(fifth)
                assert (response.status, response.headers["retry-after"]) == (429, "1")
        at_work += [stack.enter_context(dialled(small, "127.0.0.3", HANGING)) for _ in range(2)]
        wait_for_counter(shared_sim, "open_requests", at_least=6)
        with dialled(small, "127.0.0.4", GET) as seventh:
            response = answer(seventh)
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert json.loads(response.read())["error"]["code"] == "too_many_connections"
        assert [answer(sock).status for sock in at_work] == [200] * 6
        assert shared_sim.counters()["aborted_requests"] == aborted
    small.err.wait_for('"status": 429.*"error": "too_many_connections"')
    with dialled(small, sent=b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n") as sock:
        assert b'proxy_refused_total{reason="connections"} 101.0\n' in answer(sock).read()


def test_dawdlers_make_room(small: Proxy, shared_sim: Sim) -> None:
    """Of bodies that come a byte now and then one loses its place, when nothing else is idle."""
    with ExitStack() as stack:
        slow = [
            stack.enter_context(dialled(small, f"127.0.0.{2 + number % 2}", UPLOAD % b""))
            for number in range(5)
        ]
        working = stack.enter_context(dialled(small, "127.0.0.3", HANGING))
        wait_for_counter(shared_sim, "open_requests", at_least=6)
        deadline = time.monotonic() + PATIENCE
        status = 0
        while status != 200:
            assert time.monotonic() < deadline
            with dialled(small, "127.0.0.4") as sock:
                status = echo(sock)
            assert status in (200, 503)
        (turned_out,) = (sock for sock in slow if not is_open(sock))
        assert refusal(turned_out) == (503, "overloaded")
        assert answer(working).status == 200


def test_sent_ahead(small: Proxy) -> None:
    """However many requests come at once, few of them are taken before their turn, and all are answered."""
    before = memory(small)
    question, count = b"GET / HTTP/1.1\r\nhost:localhost\r\n\r\n", 20_000
    with ExitStack() as stack:
        socks = [
            stack.enter_context(dialled(small, sent=GET.replace(b"\r\n\r\n", b"\r\nx-sim: delay=1\r\n\r\n")))
            for _ in range(4)
        ]
        for sock in socks:
            sock.setblocking(False)
            assert sock.send(question * count) > 200_000
        grown = [memory(small) for _ in iter(lambda: is_open(socks[0]), False)]
        assert max(grown) - before < 10
    with dialled(small, "127.0.0.2", question * 2000) as sock, sock.makefile("rb") as incoming:
        for _ in range(2000):
            assert incoming.readline().startswith(b"HTTP/1.1 404 ")
            length = int(parse_headers(incoming)["content-length"])
            assert len(incoming.read(length)) == length
        assert echo(sock) == 200


def memory(proxy: Proxy) -> float:
    """What the process has in memory, in MiB."""
    status = Path(f"/proc/{proxy.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_question_on_the_way(small: Proxy) -> None:
    """A connection on which something waits to be read is not closed, though it came first."""
    small.process.send_signal(19)  # SIGSTOP: what is sent waits in the kernel
    try:
        with ExitStack() as stack:
            socks = [
                stack.enter_context(dialled(small, f"127.0.0.{9 + number // 3}", GET if number < 3 else b""))
                for number in range(12)
            ]
            small.process.send_signal(18)  # SIGCONT
            assert [answer(sock).status for sock in socks[:3]] == [200] * 3
    finally:
        small.process.send_signal(18)


def test_no_descriptors_left(small: Proxy) -> None:
    """Without descriptors connections wait or end, nothing is told of a crash, and it goes on by itself."""
    pid = small.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    assert before[0] == before[1]
    used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 2, before[1]))
    try:
        with ExitStack() as stack:
            for number in range(60):
                stack.enter_context(dialled(small, f"127.0.0.{5 + number % 50}"))
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    with dialled(small) as sock:
        assert echo(sock) == 200
    assert not [line for line in small.err.lines if "Traceback" in line or "Error" in line]
