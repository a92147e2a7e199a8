"""The corpus of `scripts/fuzz`, as it is and a few hundred times mutated, against a real proxy."""

from __future__ import annotations

import random

import pytest

from tests.harness import Proxy
from tests.http1.hostile import LAST, Attack, corpus, in_pieces, mutated
from tests.sim.harness import Sim

SEED = 20260720
MUTATIONS = 400


@pytest.fixture
def attack(shared_proxy: Proxy, shared_sim: Sim) -> Attack:
    tokens = shared_proxy.home.read_store()["providers"]["xai-oauth"]["tokens"]
    return Attack(shared_proxy, shared_sim, (tokens["access_token"], tokens["refresh_token"]))


def test_as_it_is(attack: Attack) -> None:
    """Nothing in the corpus reaches the API in another sense than it was sent, or does any harm."""
    attack.run([[data + LAST] for data in corpus().values()])
    attack.check_afterwards()
    assert attack.breaches == []
    assert {200, 400, 403} <= attack.answers.keys()


def test_mutated(attack: Attack) -> None:
    """Nor does what becomes of it by chance, in whatever pieces it comes."""
    chance, entries = random.Random(SEED), list(corpus().values())  # noqa: S311 - the same bytes each time
    attack.run(
        [in_pieces(mutated(chance.choice(entries), entries, chance) + LAST, chance) for _ in range(MUTATIONS)]
    )
    attack.check_afterwards()
    assert attack.breaches == []
