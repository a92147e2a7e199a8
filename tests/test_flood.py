"""A flood of slow and silent connections takes nothing from honest clients; scripts/flood is a larger one."""

from __future__ import annotations

from scripts.benchmark.flood import measure


def test_flood() -> None:
    """While many times more connections come than there is room for, every stream and request is whole."""
    outcome = measure(
        connections=1000,
        rate=500,
        seconds=3,
        streams=50,
        PROXY_MAX_CONNECTIONS=250,
        PROXY_MAX_REQUESTS=150,
    )
    honest, flood = outcome.honest, outcome.flood
    assert honest.lost == []
    assert (honest.streams, honest.streams_whole) == (50, 50)
    assert honest.shorts_whole == honest.shorts > 100  # a hundred came before the flood
    assert flood["opened"] > 250
    assert flood["closed"] > flood["503"] > 0
