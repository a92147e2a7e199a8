"""The WebSocket endpoints."""

from __future__ import annotations

import json

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from .harness import Sim


def dial(sim: Sim, path: str, headers: dict[str, str], *protocols: str) -> ClientConnection:
    return connect(
        sim.url.replace("http", "ws", 1) + path,
        additional_headers=headers,
        subprotocols=[Subprotocol(p) for p in protocols] or None,
        proxy=None,
    )


@pytest.mark.parametrize(
    "path", ["/v1/realtime?model=grok%2D4", "/v1/responses", "/v1/tts?voice=a", "/v1/stt?a=%20b"]
)
def test_frames_come_back(sim: Sim, path: str) -> None:
    """A greeting tells the target; text comes back in an envelope and binary untouched."""
    with dial(sim, path, sim.bearer()) as socket:
        greeting = json.loads(socket.recv(5))
        assert greeting["target"] == path
        assert ["authorization", "bearer:known"] in greeting["headers"]
        socket.send("Grüße")
        assert json.loads(socket.recv(5)) == {"type": "sim.echo", "text": "Grüße"}
        socket.send(bytes(range(256)))
        assert socket.recv(5) == bytes(range(256))
    assert sim.requests()[-1]["status"] == 101


def test_subprotocol_secret(sim: Sim) -> None:
    """The token may come as a subprotocol, and another offered protocol is chosen."""
    secret = f"xai-client-secret.{sim.login()['access_token']}"
    with dial(sim, "/v1/realtime?model=m", {}, secret, "realtime") as socket:
        assert socket.subprotocol == "realtime"


def test_server_closes(sim: Sim) -> None:
    """The other side can be told to close with a code and a reason."""
    with dial(sim, "/v1/realtime?model=m", sim.bearer()) as socket:
        socket.recv(5)
        socket.send('{"type":"sim.close","code":4001,"reason":"enough"}')
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(5)
    assert caught.value.rcvd
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "enough")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/realtime", {"authorization": "Bearer stale"}, 401),
        ("/v1/realtime", {}, 401),
        ("/v1/nowhere", {}, 404),
    ],
)
def test_refused(sim: Sim, path: str, headers: dict[str, str], status: int) -> None:
    """A bad token or path is refused before the upgrade, with a body."""
    with pytest.raises(InvalidStatus) as caught:
        dial(sim, path, headers)
    assert caught.value.response.status_code == status
    assert caught.value.response.body
