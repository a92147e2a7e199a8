"""The thin line end to end."""

from tests.harness import Proxy


def test_models(shared_proxy: Proxy) -> None:
    """A client gets the model list through the proxy without knowing any token."""
    assert "grok-4" in shared_proxy.http.get("/v1/models").text
