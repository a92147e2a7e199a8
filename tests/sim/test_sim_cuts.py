"""Broken connections, in both directions."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .harness import Sim, client

BROKEN = (httpx.RemoteProtocolError, httpx.ReadError)
CHAT = {"messages": [{"role": "user", "content": "one two three"}]}


@pytest.mark.parametrize("cut", ["head", "request"])
def test_cut_before_any_byte(sim: Sim, cut: str) -> None:
    """The connection closes unanswered; the record shows no status, and it was not the client who left."""
    headers = sim.bearer(x_sim=f"cut={cut}")
    with pytest.raises(BROKEN):
        sim.http.post("/v1/chat/completions", json=CHAT, headers=headers)
    record = sim.requests()[-1]
    assert (record["status"], record["aborted"]) == (None, False)
    assert (record["body_length"] is None) == (cut == "request")
    assert sim.counters()["aborted_requests"] == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("cut", "framing"), [("body", "transfer-encoding"), ("length", "content-length")])
def test_cut_in_the_body(sim: Sim, cut: str, framing: str, stream: bool) -> None:
    """Part of the body arrives under the promised framing, then truncation is visible."""
    headers = sim.bearer(x_sim=f"cut={cut}")
    with sim.http.stream(
        "POST", "/v1/chat/completions", json={**CHAT, "stream": stream}, headers=headers
    ) as reply:
        assert reply.status_code == 200
        assert framing in reply.headers
        pieces = reply.iter_raw()
        received = [next(pieces)]
        with pytest.raises(BROKEN):
            received.extend(pieces)  # keeps what came before the error
    assert b"completion_tokens" not in b"".join(received)  # usage comes last
    assert sim.requests()[-1]["aborted"] is False


def test_cut_once(sim: Sim) -> None:
    """With times=1 the second attempt with the key is served."""
    headers = sim.bearer(x_sim="cut=head;times=1;key=cut-once")
    with pytest.raises(BROKEN):
        sim.http.get("/v1/models", headers=headers)
    assert sim.http.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("directive", "body"),
    [("hang", {"stream": True}), ("hang", {}), ("chunk-delay=30", {"stream": True})],
)
def test_client_leaves_in_the_answer(sim: Sim, directive: str, body: dict[str, Any]) -> None:
    """A client that leaves after the first bytes is noticed, counted and recorded."""
    headers = sim.bearer(x_sim=directive)
    with sim.http.stream("POST", "/v1/chat/completions", json={**CHAT, **body}, headers=headers) as reply:
        pieces = reply.iter_raw()  # httpx closes the connection as soon as the iterator is dropped
        assert next(pieces)
        assert sim.counters()["open_requests"] == 1
    seen = sim.http.get("/_sim/wait-aborted", params={"n": 1, "timeout": 5}).json()
    assert seen == {"aborted_requests": 1, "reached": True}
    assert sim.requests()[-1]["aborted"] is True
    assert sim.counters()["open_requests"] == 0


def test_client_leaves_before_the_head(sim: Sim) -> None:
    """A client that loses patience before the head counts as gone, too."""
    with (
        client(sim.url, timeout=0.2) as http,
        pytest.raises(httpx.ReadTimeout),
    ):
        http.get("/v1/models", headers=sim.bearer(x_sim="delay=30"))
    assert sim.http.get("/_sim/wait-aborted", params={"n": 1, "timeout": 5}).json()["reached"] is True


def test_client_leaves_in_the_upload(sim: Sim) -> None:
    """A body that stops half-way counts as gone."""

    def broken() -> Any:
        yield b"x" * 1000
        raise RuntimeError("enough")

    with (
        client(sim.url) as http,
        pytest.raises(RuntimeError, match="enough"),
    ):
        http.post("/v1/files", headers=sim.bearer(), content=broken())
    assert sim.http.get("/_sim/wait-aborted", params={"n": 1, "timeout": 5}).json()["reached"] is True


def test_complete_answers_are_not_aborted(sim: Sim) -> None:
    """Closing the connection after a whole answer is no abortion, however fast."""
    for _ in range(20):
        with client(sim.url) as http:
            http.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=sim.bearer())
        assert sim.counters()["open_requests"] == 0
    assert sim.counters()["aborted_requests"] == 0
