"""Who asks for a stream, and limits that change while requests are open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.client_keys import ClientKey
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.events import Event, RequestRefused, StreamCounted
from grok_oauth_proxy.proxy.admission import Admission, Limits, asks_for_stream
from grok_oauth_proxy.proxy.body import Keep
from grok_oauth_proxy.proxy.exchange import Exchange
from grok_oauth_proxy.proxy.key_ring import Guest, KeyLimited

BODIES = {
    b'{"stream":true}': True,
    b'{"stream" :\n true, "model":"x"}': True,
    b'{"messages":[],"stream":true,"stream_options":{}}': True,
    b'{"stream":true,"user":"stream","stop":"stream"}': True,
    b'{"stream":false}': False,
    b'{"stream":"true"}': False,
    b'{"stream":truer}': False,
    b'{"content":"say \\"stream\\": true"}': False,
    b'{"content":"stream"}': False,
    b'"stream"': False,
    b"": False,
}


@pytest.mark.parametrize(("body", "streamed"), BODIES.items(), ids=repr)
def test_asks_for_stream(body: bytes, streamed: bool) -> None:
    """The field of the request counts, and no text that looks like it."""
    assert asks_for_stream(body) is streamed


async def never(_message: object = None) -> Any:
    raise AssertionError("nothing is read or sent here")


def request(body: bytes = b"") -> Exchange:
    client = SimpleNamespace(
        framing=[(b"content-length", b"1")], take_body=lambda: body, wants_websocket=False, dawdles=False
    )
    scope = {"method": "POST", "raw_path": b"/v1/x", "headers": [], "state": {"client": client}}
    return Exchange(scope, never, never, Clock(), keep=Keep(100))


@pytest.mark.anyio
async def test_refused_for_nothing_of_its_key() -> None:
    """A request that a limit of the proxy refuses does not count for its key's minute, nor as open."""
    guest = Guest(ClientKey("app", bytes(32), "2026-07-20T12:00:00Z", requests_per_minute=1, concurrent=1))
    admission = Admission(Limits(1, 0), lambda _event: None, Clock())
    await admission.enter(other := request())
    keyed = request()
    keyed.guest = guest
    with pytest.raises(ProxyError, match="PROXY_MAX_REQUESTS"):
        await admission.enter(keyed)
    admission.leave(other)
    await admission.enter(keyed)
    with pytest.raises(KeyLimited):
        guest.take(0)


@pytest.mark.anyio
async def test_limits_may_change() -> None:
    """New limits hold for what comes; what is open stays, and counts."""
    heard: list[Event] = []
    admission = Admission(Limits(2, 0), heard.append, Clock())
    opened = [request(b'{"stream":true}') for _ in range(2)]
    for one in opened:
        await admission.enter(one)
        admission.note_answer(one, [(b"content-type", b"text/event-stream; charset=utf-8")])
    with pytest.raises(ProxyError, match="PROXY_MAX_REQUESTS"):
        await admission.enter(request())
    admission.limits = Limits(0, 1)
    await admission.enter(plain := request())
    with pytest.raises(ProxyError, match="PROXY_MAX_STREAMS"):
        await admission.enter(refused := request(b'{"stream":true}'))
    assert repr(admission) == "Admission(requests=3, streams=2, Limits(requests=0, streams=1))"
    for one in (*opened, plain, refused):
        admission.leave(one)
    assert repr(admission).startswith("Admission(requests=0, streams=0, ")
    changes = [event.change for event in heard if isinstance(event, StreamCounted)]
    assert changes == [1, 1, -1, -1]
    assert [event.reason for event in heard if isinstance(event, RequestRefused)] == ["requests", "streams"]
