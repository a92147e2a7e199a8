"""The port speaking TLS: clients that know its certificate, commands that trust no other, refusals."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from openai import OpenAI
from websockets.sync.client import connect

from grok_oauth_proxy.certificate import out_of_time, reload_certificate, server_context
from grok_oauth_proxy.errors import StartRefused
from grok_oauth_proxy.moving.pinning import pinned_context
from grok_oauth_proxy.settings import Settings
from tests.clients.waiting import wait_for_counter
from tests.credentials.users import NOBODY, as_root
from tests.harness import PATIENCE, Home, Proxy, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim

KEY = "canary-key-0123456789"
UPLOAD = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: %b\r\n" % KEY.encode()
QUESTION = {"model": "grok-4", "stream": True, "messages": [{"role": "user", "content": "good morning"}]}


LOOK = """
from grok_oauth_proxy.moving.health import running_proxy
from grok_oauth_proxy.moving.surroundings import look_around
print(running_proxy(look_around()))
"""


@dataclass(frozen=True)
class Certificate:
    """What the proxy is started with: a certificate, its key, and that of its issuer."""

    certificate: Path
    key: Path
    authority: Path

    def read(self) -> Settings:
        return Settings(proxy_tls_cert=self.certificate, proxy_tls_key=self.key)


def issued(folder: Path, *, expired: bool = False) -> Certificate:
    """A certificate for this machine by an authority that nobody knows."""
    authority = trustme.CA()
    until = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)
    issued = authority.issue_cert(
        "127.0.0.1",
        "localhost",
        not_before=until - datetime.timedelta(days=1) if expired else None,
        not_after=until if expired else None,
    )
    made = Certificate(folder / "cert.pem", folder / "key.pem", folder / "authority.pem")
    for path, blob in (
        (made.certificate, issued.cert_chain_pems[0]),
        (made.key, issued.private_key_pem),
        (made.authority, authority.cert_pem),
    ):
        path.touch(0o600)
        path.chmod(0o600)
        blob.write_to_path(str(path))
    return made


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return issued(tmp_path_factory.mktemp("shown"))


@pytest.fixture(scope="module")
def proxy(shared_sim: Sim, shown: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that speaks TLS on its port, wants a key, and waits for little."""
    home = Home(tmp_path_factory.mktemp("home"))
    home.write_store(provider_store(shared_sim.login()))
    run_folder = home.path / "run"
    run_folder.mkdir(mode=0o700)
    with proxy_running(
        home,
        shared_sim,
        trust=ssl.create_default_context(cafile=shown.authority),
        PROXY_API_KEY=KEY,
        PROXY_UDS=run_folder / "sock",
        PROXY_HEAD_TIMEOUT=0.5,
        PROXY_MAX_BODY=1_000_000,
        PROXY_TLS_CERT=shown.certificate,
        PROXY_TLS_KEY=shown.key,
    ) as proxy:
        proxy.http.headers["x-api-key"] = KEY
        yield proxy


def secured(proxy: Proxy, shown: Certificate) -> ssl.SSLSocket:
    """A connection to it, the handshake done."""
    context = ssl.create_default_context(cafile=shown.authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context.wrap_socket(proxy.dial(), server_hostname="localhost", suppress_ragged_eofs=False)


def read_on(sock: socket.socket) -> None:
    """To the end in order; raises what another end means."""
    while sock.recv(65536):
        pass


def test_what_is_spoken(proxy: Proxy, shown: Certificate) -> None:
    """TLS 1.2 and 1.3 with HTTP/1.1, and nothing older."""
    with secured(proxy, shown) as sock:
        assert (sock.version(), sock.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
    old = ssl.create_default_context(cafile=shown.authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with old.wrap_socket(proxy.dial(), server_hostname="localhost") as sock:
        assert sock.version() == "TLSv1.2"
    asked = ["openssl", "s_client", "-connect", proxy.url.removeprefix("https://"), "-tls1_1"]
    refused = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    assert refused.returncode != 0


def test_openai(proxy: Proxy) -> None:
    """The OpenAI SDK streams over it."""
    openai = OpenAI(base_url=f"{proxy.url}/v1", api_key=KEY, http_client=proxy.http)
    stream = openai.chat.completions.create(
        model="grok-4", stream=True, messages=[{"role": "user", "content": "good morning"}]
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_upload_and_download(proxy: Proxy) -> None:
    """What is larger than a record goes through whole, both ways."""
    body = bytes(range(256)) * 3000
    assert proxy.http.post("/v1/echo", content=body).json()["body_length"] == len(body)


def test_websocket(proxy: Proxy, shown: Certificate) -> None:
    """A WebSocket goes through it, frames larger than a record as well."""
    with connect(
        proxy.url.replace("http", "ws", 1) + "/v1/realtime",
        additional_headers={"x-api-key": KEY},
        ssl=ssl.create_default_context(cafile=shown.authority),
        proxy=None,
        open_timeout=PATIENCE,
    ) as talk:
        talk.recv(PATIENCE)
        talk.send(bytes(range(256)) * 1000)
        assert talk.recv(PATIENCE) == bytes(range(256)) * 1000


def test_unix_socket_stays_plain(proxy: Proxy) -> None:
    """The Unix socket, which never leaves the machine, needs no TLS."""
    transport = httpx.HTTPTransport(uds=str(proxy.home.path / "run/sock"))
    with httpx.Client(transport=transport, base_url="http://localhost") as http:
        assert http.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200


def test_slow_handshake(proxy: Proxy, shown: Certificate) -> None:
    """A handshake has the time of a head, and the head behind it as much again."""
    with proxy.dial() as silent, proxy.dial() as begun, proxy.dial() as other:
        begun.sendall(b"\x16\x03\x01\x02\x00\x01")
        other.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert [sock.recv(100) for sock in (silent, begun)] == [b"", b""]
        read_on(other)  # an alert, and the end
    with secured(proxy, shown) as sock:
        sock.sendall(b"GET /v1")
        assert sock.recv(100).startswith(b"HTTP/1.1 408 ")


def test_refusal_of_an_upload(proxy: Proxy, shown: Certificate) -> None:
    """A client that sends all before it reads finds the refusal that came long before."""
    with secured(proxy, shown) as sock:
        sock.sendall(UPLOAD + b"Content-Length: 20000000\r\n\r\n")
        for _ in range(20):
            sock.sendall(bytes(1_000_000))
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_client_that_goes(proxy: Proxy, shown: Certificate, shared_sim: Sim) -> None:
    """A client that goes away in an upload leaves an incomplete one at the API, with a goodbye or without."""
    for farewell in (False, True):
        aborted = shared_sim.counters()["aborted_requests"]
        with secured(proxy, shown) as sock:
            sock.sendall(UPLOAD + b"Content-Length: 9\r\n\r\nhello")
            wait_for_counter(shared_sim, "open_requests", at_least=1)
            if farewell:
                sock.unwrap()
        wait_for_counter(shared_sim, "aborted_requests", at_least=aborted + 1)


def test_cut_answer(proxy: Proxy, shown: Certificate) -> None:
    """An answer that the API cuts ends without a goodbye where its end would look like one."""
    question = json.dumps(QUESTION).encode()
    head = (
        UPLOAD.replace(b"echo HTTP/1.1", b"chat/completions HTTP/1.0")
        + b"x-sim: cut=body\r\nContent-Type: application/json\r\n"
    )
    with secured(proxy, shown) as sock:
        sock.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(question), question))
        # Python shows a reset as an end that is none, too.
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            read_on(sock)


@pytest.mark.parametrize(("scheme", "status"), [("https", 200), ("http", 403)])
def test_own_pages(proxy: Proxy, scheme: str, status: int) -> None:
    """A page of the proxy's own origin is one that came over TLS."""
    origin = proxy.url.replace("https", scheme, 1)
    assert proxy.http.get("/v1/models", headers={"origin": origin}).status_code == status


def test_commands(proxy: Proxy, shown: Certificate, shared_sim: Sim, tmp_path: Path) -> None:
    """The commands trust the certificate of the settings and no other; what they print works with curl."""
    env = environment(
        proxy.home, shared_sim, PROXY_API_KEY=KEY, PROXY_TLS_CERT=shown.certificate, PROXY_TLS_KEY=shown.key
    )
    told = json.loads(run(env, "status", "--json").stdout)
    assert (told["running"], told["address"]) == (True, proxy.url)
    assert f"OPENAI_BASE_URL={proxy.url}/v1" in run(env, "env").stdout
    assert "It runs and is ok." in run(env, "doctor").stdout
    curl = run(env, "config", "curl").stdout
    answered = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, timeout=PATIENCE)
    assert json.loads(answered.stdout)["choices"], answered.stderr
    program = [sys.executable, "-c", run(env, "config", "openai").stdout]
    answered = subprocess.run(program, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert answered.stdout.strip(), answered.stderr
    found = subprocess.run([sys.executable, "-c", LOOK], env=env, capture_output=True, text=True)
    assert found.stdout.strip() == proxy.url, found.stderr

    another = issued(tmp_path)
    unknown = environment(proxy.home, shared_sim, PROXY_API_KEY=KEY)
    assert "Set PROXY_TLS_CERT here" in json.loads(run(unknown, "status", "--json").stdout)["message"]
    other = environment(
        proxy.home,
        shared_sim,
        PROXY_API_KEY=KEY,
        PROXY_TLS_CERT=another.certificate,
        PROXY_TLS_KEY=another.key,
    )
    assert "has another certificate" in json.loads(run(other, "status", "--json").stdout)["message"]
    assert KEY not in "".join(proxy.err.lines)


def test_workers_with_an_old_certificate(home: Home, own_sim: Sim, tmp_path: Path) -> None:
    """Several processes speak it, to whom an expired certificate is warned of, and finish their streams."""
    home.write_store(provider_store(own_sim.login()))
    old = issued(tmp_path, expired=True)
    with proxy_running(
        home,
        own_sim,
        trust=pinned_context(old.certificate),
        PROXY_WORKERS=2,
        PROXY_TLS_CERT=old.certificate,
        PROXY_TLS_KEY=old.key,
    ) as proxy:
        proxy.err.wait_for("certificate in PROXY_TLS_CERT has expired")
        slow = {"x-sim": "chunk-delay=0.05"}
        with proxy.http.stream("POST", "/v1/chat/completions", json=QUESTION, headers=slow) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert proxy.process.poll() is None
            proxy.process.terminate()
            assert [*lines][-2:] == ["data: [DONE]", ""]
        assert proxy.process.wait(PATIENCE) == 0
        assert "Traceback" not in proxy.err.text()


def refusal(certificate: Certificate) -> str:
    with pytest.raises(StartRefused) as caught:
        server_context(certificate.read())
    assert (caught.value.exit_code, caught.value.__cause__) == (3, None)
    return caught.value.message


def test_key_of_others(tmp_path: Path, home: Home) -> None:
    """A key that others can read keeps it from starting, in one line: exit code 3."""
    made = issued(tmp_path)
    made.key.chmod(0o644)
    ended = run(
        environment(
            home,
            CREDENTIAL_SOURCE="api-key",
            XAI_API_KEY="x" * 20,
            PROXY_TLS_CERT=made.certificate,
            PROXY_TLS_KEY=made.key,
        )
    )
    assert ended.returncode == 3
    assert ended.stderr.splitlines()[-1].endswith(f"chmod 600 {made.key}")
    made.key.chmod(0o620)
    assert "can be read by others" in refusal(made)
    made.key.chmod(0o400)
    assert server_context(made.read()) is not None


@as_root
def test_key_of_root_seen_by_a_unit(tmp_path: Path) -> None:
    """A group may read root's key, also where root has no number (PrivateUsers=); nobody else may."""
    made = issued(tmp_path)
    for owner in (0, NOBODY):
        os.chown(made.key, owner, 0)
        made.key.chmod(0o640)
        assert server_context(made.read()) is not None
        made.key.chmod(0o644)
        assert "can be read by others" in refusal(made)


def test_files_that_cannot_be_used(tmp_path: Path, shown: Certificate) -> None:
    """What is missing, no certificate, another's key or encrypted is told as such."""
    made = issued(tmp_path)
    encrypted = tmp_path / "encrypted.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", made.key, "-aes256", "-passout", "pass:secret", "-out", encrypted],
        check=True,
        timeout=PATIENCE,
    )
    encrypted.chmod(0o600)
    os.mkfifo(tmp_path / "pipe")
    for certificate, key, told in (
        (tmp_path / "none.pem", made.key, "PROXY_TLS_CERT"),
        (made.certificate, tmp_path / "none.pem", "PROXY_TLS_KEY"),
        (made.certificate, tmp_path, "is not a regular file"),
        (tmp_path / "pipe", made.key, "is not a regular file"),
        (made.key, made.key, "must be PEM files"),
        (made.certificate, shown.key, "is not the key of the certificate"),
        (made.certificate, encrypted, "is encrypted"),
    ):
        assert told in refusal(Certificate(certificate, key, made.authority))


def test_reload(tmp_path: Path) -> None:
    """Handshakes show what the files hold when they are read again, and what they held if that is no good."""
    (tmp_path / "fresh").mkdir()
    made, fresh = issued(tmp_path, expired=True), issued(tmp_path / "fresh")
    before = Path(shutil.copy(made.certificate, tmp_path / "before.pem"))
    context = server_context(made.read())
    assert context is not None
    shutil.copy(fresh.certificate, made.certificate)
    with pytest.raises(StartRefused, match="is not the key"):
        reload_certificate(context, made.read())
    assert out_of_time(context, before) == "has expired"
    shutil.copy(fresh.key, made.key)
    reload_certificate(context, made.read())
    assert out_of_time(context, before) is None


def test_renewed_while_it_runs(home: Home, own_sim: Sim, tmp_path: Path) -> None:
    """After SIGHUP handshakes show a renewed certificate; a bad one is told, and changes nothing."""
    home.write_store(provider_store(own_sim.login()))
    made = issued(tmp_path)
    with proxy_running(
        home,
        own_sim,
        trust=pinned_context(made.certificate),
        PROXY_TLS_CERT=made.certificate,
        PROXY_TLS_KEY=made.key,
    ) as proxy:
        for renew, said in (
            (issued, "read again"),
            (lambda _: made.key.write_text("?"), "stay as they were"),
        ):
            renew(tmp_path)
            proxy.process.send_signal(signal.SIGHUP)
            proxy.err.wait_for(said)
            with httpx.Client(base_url=proxy.url, verify=pinned_context(made.certificate)) as http:
                assert http.get("/health").status_code == 200


def test_open_to_the_network(home: Home, own_sim: Sim) -> None:
    """Beyond loopback and without TLS, what that exposes is said in one line."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_HOST="0.0.0.0", PROXY_API_KEY=KEY) as proxy:
        assert [line for line in proxy.err.lines if "is not encrypted" in line and "PROXY_TLS_CERT" in line]
