"""The proxy's own login as it lies on the disk."""

from __future__ import annotations

import hashlib
import json

from tests.harness import Home, Json
from tests.sim.harness import claims


def own_login(home: Home, tokens: Json, dead: str | None = None) -> None:
    """The login.json that the proxy writes for a login of its own."""
    fields = claims(tokens["access_token"])
    held = {
        "access_token": tokens["access_token"],
        "refresh_token": tokens["refresh_token"],
        "id_token": None,
        "token_type": "Bearer",
        "expires_in": None,
        "issued_at": fields["iat"],
        "expires_at": fields["exp"],
    }
    link = hashlib.sha256(tokens["refresh_token"].encode()).hexdigest()[:32]
    content = {
        "version": 1,
        "provider": "xai-oauth",
        "source": "own",
        "client_id": fields["client_id"],
        "tokens": held,
        "successors": {},
        "dead": {link: dead} if dead else {},
        "last_refresh": {},
        "sending": None,
    }
    path = home.state.with_name("login.json")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))
