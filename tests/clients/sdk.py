"""The openai SDK, pointed at a proxy. It never tries again by itself, so that every failure is seen."""

from __future__ import annotations

from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI

from tests.sim.harness import NO_CERTIFICATES


def sync_client(base_url: str, api_key: str = "anything") -> OpenAI:
    """A client to be closed by the caller; `base_url` ends in /v1 unless the test is about that."""
    http = DefaultHttpxClient(trust_env=False, verify=NO_CERTIFICATES)
    return OpenAI(base_url=base_url, api_key=api_key, max_retries=0, http_client=http)


def async_client(base_url: str, api_key: str = "anything") -> AsyncOpenAI:
    """The same for asyncio."""
    http = DefaultAsyncHttpxClient(trust_env=False, verify=NO_CERTIFICATES)
    return AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, http_client=http)
