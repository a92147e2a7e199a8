"""A login that was revoked, asked for by many at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import Home, Proxy, pool_store, provider_store, proxy_running
from tests.sim.harness import Sim
from tests.survival.scene import ADOPTED, ask, wait_until_served

MANY = 60


def codes(proxy: Proxy) -> set[tuple[int, str]]:
    """What as many requests at once are told."""
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(proxy), range(MANY)))
    return {(answer.status_code, answer.json()["error"]["code"]) for answer in answers}


@pytest.mark.parametrize("workers", [1, 3])
def test_dead_login_costs_one_call(home: Home, own_sim: Sim, workers: int) -> None:
    """However many ask, and whichever worker, the token endpoint is called once; a new login ends it."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_WORKERS=workers) as proxy:
        own_sim.http.post("/_sim/revoke").raise_for_status()
        for _ in range(2):
            assert codes(proxy) == {(503, "invalid_grant")}
        assert own_sim.counters()["token_requests"] == 1
        home.write_store(pool_store(own_sim.login()))
        proxy.err.wait_for(ADOPTED)
        wait_until_served(proxy)
        assert own_sim.counters()["token_requests"] == 1
