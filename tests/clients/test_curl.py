"""The real curl against the real proxy."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from grok_oauth_proxy.sim.media import audio_bytes
from tests.clients.waiting import wait_for_counter
from tests.harness import PATIENCE, Output, Proxy
from tests.sim.harness import Sim

PARTIAL_FILE, RECEIVE_FAILED = 18, 56  # curl's exit codes for an answer that is not whole
JSON_BODY = ("-H", "content-type: application/json", "--data-binary")
STREAM = '{"stream": true, "messages": [{"role": "user", "content": "good morning"}]}'
WHOLE = '{"messages": [{"role": "user", "content": "good morning"}]}'


def command(*arguments: str) -> list[str]:
    """curl without a configuration file and without proxies."""
    return ["curl", "--disable", "--noproxy", "*", "--silent", "--show-error", *arguments]


def curl(*arguments: str, sent: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run curl to its end, with `sent` on its standard input."""
    return subprocess.run(
        command("--max-time", str(PATIENCE), *arguments),
        input=sent,
        capture_output=True,
        env={"PATH": os.environ["PATH"]},
        timeout=2 * PATIENCE,
        check=False,
    )


def succeeded(*arguments: str, sent: bytes = b"") -> bytes:
    """What curl writes when it is content."""
    done = curl(*arguments, sent=sent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def headers_and_body(written: bytes) -> tuple[dict[str, str], bytes]:
    """Take apart what `curl -i` writes, one answer."""
    head, _, body = written.partition(b"\r\n\r\n")
    lines = (line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:])
    return {name.lower(): value for name, _, value in lines}, body


def content(size: int) -> bytes:
    """Bytes without a pattern, always the same."""
    return hashlib.shake_256(b"upload").digest(size)


def check_echo(echo: dict[str, Any], body: bytes) -> None:
    assert (echo["body_length"], echo["body_sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


@contextmanager
def streaming(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Output]]:
    """A curl that goes on in the background and the lines it writes; ended by its id."""
    env = {"PATH": os.environ["PATH"]}
    with subprocess.Popen(command("-N", *arguments), stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process, Output(process.stdout)
        finally:
            process.kill()


def test_events_arrive_as_they_come(shared_proxy: Proxy, shared_sim: Sim) -> None:
    """The first event can be read while the answer is not complete, and never will be."""
    url = f"{shared_proxy.url}/v1/chat/completions"
    with streaming("-H", "x-sim: hang", *JSON_BODY, STREAM, url) as (process, out):
        out.wait_for(r'^data: .*"role":"assistant"')
        assert process.poll() is None
        assert shared_sim.counters()["open_requests"] == 1
    wait_for_counter(shared_sim, "open_requests", at_most=0)


def test_events_of_a_paced_stream(shared_proxy: Proxy, shared_sim: Sim) -> None:
    """An event is not held back until the next one, even when that takes its time."""
    url = f"{shared_proxy.url}/v1/responses"
    with streaming("-H", "x-sim: chunk-delay=600", *JSON_BODY, STREAM, url) as (process, out):
        out.wait_for("^event: response.created")
        out.wait_for(r'^data: {"type":"response.created"')
        assert process.poll() is None
        assert not any("response.in_progress" in line for line in out.lines)
    wait_for_counter(shared_sim, "open_requests", at_most=0)


def test_a_client_that_goes_away(shared_proxy: Proxy, shared_sim: Sim) -> None:
    """When curl is killed in mid-stream the API is told: its request ends as aborted."""
    before = shared_sim.counters()["aborted_requests"]
    url = f"{shared_proxy.url}/v1/chat/completions"
    with streaming("-H", "x-sim: chunk-delay=600", *JSON_BODY, STREAM, url) as (process, out):
        out.wait_for("^data: ")
        process.kill()
        wait_for_counter(shared_sim, "aborted_requests", at_least=before + 1)
    assert shared_sim.requests()[-1]["aborted"] is True
    assert shared_proxy.http.get("/v1/models").status_code == 200


@pytest.mark.parametrize("body", [STREAM, WHOLE], ids=["stream", "whole"])
def test_http_1_0(shared_proxy: Proxy, body: str) -> None:
    """An HTTP/1.0 client gets the same answer, never in chunks it could not read."""
    url = f"{shared_proxy.url}/v1/chat/completions"
    headers, answer = headers_and_body(succeeded("--http1.0", "-i", *JSON_BODY, body, url))
    assert "transfer-encoding" not in headers
    if body == STREAM:
        assert answer.startswith(b"data: {")
        assert answer.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(answer)["choices"][0]["finish_reason"] == "stop"


def test_expect_continue(shared_proxy: Proxy, tmp_path: Path) -> None:
    """Asked for it, the proxy says 100 before the body is sent, and does not ask the API the same."""
    body = content(1_500_000)
    (tmp_path / "upload").write_bytes(body)
    written = succeeded(
        *("-i", "-H", "Expect: 100-continue", "--expect100-timeout", str(10 * PATIENCE)),
        *("--data-binary", f"@{tmp_path}/upload", f"{shared_proxy.url}/v1/echo"),
    )
    said, _, answer = written.partition(b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 100")
    echo = json.loads(headers_and_body(answer)[1])
    check_echo(echo, body)
    assert "expect" not in dict(echo["headers"])


def test_chunked_upload(shared_proxy: Proxy) -> None:
    """A body of unknown length arrives whole, and still chunked."""
    body = content(300_000)
    written = succeeded(
        "-H", "Transfer-Encoding: chunked", "-T", "-", f"{shared_proxy.url}/v1/echo", sent=body
    )
    echo = json.loads(written)
    check_echo(echo, body)
    assert echo["method"] == "PUT"
    assert dict(echo["headers"])["transfer-encoding"] == "chunked"
    assert "content-length" not in dict(echo["headers"])


def test_large_upload(shared_proxy: Proxy, tmp_path: Path) -> None:
    """20 MB, more than is kept to be sent again, arrive unchanged under their length."""
    body = content(20 * 1024 * 1024)
    (tmp_path / "upload").write_bytes(body)
    echo = json.loads(succeeded("-T", str(tmp_path / "upload"), f"{shared_proxy.url}/v1/echo"))
    check_echo(echo, body)
    assert dict(echo["headers"])["content-length"] == str(len(body))


def test_head(shared_proxy: Proxy) -> None:
    """HEAD gives the headers of GET, with the length of a body that does not come."""
    url = f"{shared_proxy.url}/v1/models"
    headers, body = headers_and_body(succeeded("-I", url))
    assert (headers["content-type"], body) == ("application/json", b"")
    assert int(headers["content-length"]) == len(succeeded(url))


def test_head_upstream(shared_proxy: Proxy, shared_sim: Sim) -> None:
    """The API is asked with the client's own method, HEAD."""
    succeeded("-I", f"{shared_proxy.url}/v1/models")
    assert shared_sim.requests()[-1]["method"] == "HEAD"


def test_compressed(shared_proxy: Proxy) -> None:
    """A compressed answer goes through as it is: packed on the wire, readable for curl --compressed."""
    arguments = ("-H", "x-sim: gzip", f"{shared_proxy.url}/v1/models")
    packed = succeeded(*arguments)
    headers, unpacked = headers_and_body(succeeded("--compressed", "-i", *arguments))
    assert headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed) == unpacked
    assert json.loads(unpacked)["object"] == "list"


def test_binary(shared_proxy: Proxy) -> None:
    """Audio arrives byte for byte."""
    url = f"{shared_proxy.url}/v1/tts"
    assert succeeded(*JSON_BODY, '{"input": "good morning"}', url) == audio_bytes("good morning")


@pytest.mark.parametrize(
    "target",
    [
        "/v1/echo/batch-1:cancel",
        "/v1/echo/a%2Fb%2fc%3F%23%25",
        "/v1/echo/%E2%82%AC%20%7E~%41",
        "/v1/echo//two///slashes/",
        "/v1/echo/a;b=c,d!$&'()*+@",
        "/v1/echo?",
        "/v1/echo/x?q=%20+%2B&q=&&=;/?:@%zz",
        "/v1/echo?model=grok-4&filter[]={a}|b^c`d",
    ],
)
def test_target(shared_proxy: Proxy, target: str) -> None:
    """Path and query arrive byte for byte as the client wrote them."""
    written = succeeded("--path-as-is", "--globoff", shared_proxy.url + target)
    assert json.loads(written)["target"] == target


@pytest.mark.parametrize("path", ["/v1/../_sim/state", "/v1/%2e%2e/x", "/v1/echo/../../x", "/v1/..%5Cx"])
def test_dot_segments(shared_proxy: Proxy, shared_sim: Sim, path: str) -> None:
    """A path that could leave the API's own is refused, and nothing is sent on."""
    before = shared_sim.counters()["api_requests"]
    status = succeeded("--path-as-is", "-o", os.devnull, "-w", "%{http_code}", shared_proxy.url + path)
    assert status == b"400"
    assert shared_sim.counters()["api_requests"] == before


@pytest.mark.parametrize("body", [STREAM, WHOLE], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("cut", "framing"),
    [("body", "transfer-encoding"), ("length", "content-length")],
    ids=["chunked", "counted"],
)
def test_truncated_answer(shared_proxy: Proxy, cut: str, framing: str, body: str) -> None:
    """An answer that breaks off at the API ends as a partial file, after what had come of it."""
    done = curl("-i", "-H", f"x-sim: cut={cut}", *JSON_BODY, body, f"{shared_proxy.url}/v1/chat/completions")
    headers, part = headers_and_body(done.stdout)
    assert framing in headers
    assert part
    assert done.returncode == PARTIAL_FILE, done.stderr


@pytest.mark.parametrize("body", [STREAM, WHOLE], ids=["stream", "whole"])
@pytest.mark.parametrize("cut", ["body", "length"])
def test_truncated_answer_to_http_1_0(shared_proxy: Proxy, cut: str, body: str) -> None:
    """Even where a body ends with the connection, a broken answer does not pass for a whole one."""
    url = f"{shared_proxy.url}/v1/chat/completions"
    done = curl("--http1.0", "-H", f"x-sim: cut={cut}", *JSON_BODY, body, url)
    assert done.returncode in (PARTIAL_FILE, RECEIVE_FAILED), done.stderr
