"""The event loop that the daemon runs on, and an API to talk to."""

from __future__ import annotations

import pytest

from tests.proxy.api import Api


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def api() -> Api:
    return Api()
