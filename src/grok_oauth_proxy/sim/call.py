"""One API call as the endpoints see it: no sockets, only what was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from grok_oauth_proxy.sim.directives import Directives
from grok_oauth_proxy.sim.exchange import Exchange
from grok_oauth_proxy.sim.reply import Reply
from grok_oauth_proxy.sim.world import World


class UnreadableError(ValueError):
    """A request body the endpoint cannot read; `status` and the message become a plain-text refusal."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Call:
    """A routed request with its body; `params` come from the path."""

    world: World
    exchange: Exchange
    directives: Directives
    body: bytes
    params: dict[str, str] = field(default_factory=dict)

    def header(self, name: bytes) -> str:
        """The first header of that lower-case name, or an empty string."""
        return next((v.decode("latin-1") for n, v in self.exchange.headers if n == name), "")

    def json(self) -> dict[str, object]:
        """The JSON object sent. Raises UnreadableError with 415 or 422."""
        if "json" not in self.header(b"content-type"):
            raise UnreadableError(415, "Expected request with `Content-Type: application/json`")
        try:
            value = json.loads(self.body)
        except ValueError:
            raise UnreadableError(422, "Failed to parse the request body as JSON") from None
        if not isinstance(value, dict):
            raise UnreadableError(422, "Failed to deserialize the JSON body into the target type")
        return value


Endpoint = Callable[[Call], Reply]
