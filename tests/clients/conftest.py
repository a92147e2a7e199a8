"""What every client test gets: an environment without settings for clients, and asyncio for async tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

STEERING = ("OPENAI_", "LITELLM_", "CURL_", "SSL_CERT_")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="module")
def _plain_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No proxy, no client settings and no real home: only the proxy under test is spoken to."""
    with pytest.MonkeyPatch.context() as environment:
        for name in os.environ:
            if name.upper().endswith("_PROXY") or name.startswith(STEERING):
                environment.delenv(name)
        environment.setenv("HOME", str(tmp_path_factory.mktemp("client-home")))
        yield
