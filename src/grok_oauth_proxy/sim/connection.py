"""uvicorn's HTTP connection, showing the application two things ASGI hides.

`scope["state"]["transport"]` is the transport, so that a connection can be cut.
`scope["state"]["target"]` is the request target as received: ASGI cannot tell `/path?` from `/path`.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState


class _TargetKeeper(h11.Connection):
    """An h11 server that notes each request's target in a connection's state."""

    def __init__(self, head_limit: int, owner: Connection) -> None:
        super().__init__(h11.SERVER, head_limit)
        self._owner = owner

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._owner.app_state["target"] = event.target
        return event


class Connection(H11Protocol):
    """One client connection; its state is its own, not shared with others."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state}, _loop)
        self.conn = _TargetKeeper(config.h11_max_incomplete_event_size or 16 * 1024, self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.app_state["transport"] = transport
