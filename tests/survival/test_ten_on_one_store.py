"""Ten processes and more on one store: Hermes, proxies, workers, commands, for a thousand rotations."""

from __future__ import annotations

import json

import pytest

from tests.harness import Json
from tests.hermes.rig import SHAPES, SHORT_LIFE, Rig, Shape
from tests.hermes.test_hermes_sharing import STRANGE
from tests.survival.crowd import Crowd, Participant, command, hermes, proxy, reader

ROTATIONS = 500
"""For each of the two shapes."""
PATIENCE = 150.0
"""Seconds for all of them. A quiet machine needs a tenth of it."""

# A proxy with two workers is three processes.
OWNERS: tuple[Participant, ...] = (
    proxy("one"),
    proxy("two"),
    proxy("three"),
    proxy("four", PROXY_WORKERS=2),
    reader,
    command("status", "one", codes=(0, 1)),  # 1: a token of a second has just run out
    command("login", "apart"),
)
TAKING_PART: dict[Shape, tuple[Participant, ...]] = {
    "provider": (hermes("provider"), hermes("provider"), hermes("pool"), *OWNERS),
    "pool": (hermes("pool"), hermes("pool"), hermes("pool"), *OWNERS),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_ten_on_one_store(rig: Rig, shape: Shape) -> None:
    """Of five hundred links none is spent twice, no answer fails, no key is lost, no read is torn."""
    rig.login(shape)
    rig.home.write_store(with_strangers(rig.home.read_store()))
    before = strangers(rig.home.read_store())
    rig.sim.patch(access_lifetime=SHORT_LIFE, device_interval=1)
    with Crowd.at_work(rig, TAKING_PART[shape]) as crowd:
        # Hermes renews all the time, so that a proxy is seldom the one that has to.
        crowd.work_until(
            lambda: (
                rig.sim.counters()["refreshes"] >= ROTATIONS
                and all(owner.rotated() for owner in crowd.owners[3:7])
            ),
            PATIENCE,
        )
    assert crowd.failures == []
    assert all(crowd.turns)
    counters = rig.sim.counters()
    assert counters["refreshes"] >= ROTATIONS
    # Each `login` makes a grant of its own, which is nobody else's.
    assert (counters["reuses"], counters["revocations"]) == (0, 0)
    assert counters["logins"] == 1 + crowd.turns[-1]
    assert strangers(rig.home.read_store()) == before
    (living,) = rig.home.refresh_tokens()
    state = json.loads((rig.home.path / "one" / "auth_state.json").read_text())
    assert rig.sim.refresh(living, client_id=state["client_id"]).status_code == 200


def with_strangers(store: Json) -> Json:
    """The store of somebody who uses other providers too, and a Hermes that knows more keys."""
    theirs: Json = {"tokens": {"access_token": "theirs", "refresh_token": "theirs"}, **STRANGE}
    return {
        "of_a_later_hermes": STRANGE,
        **store,
        "providers": {"elsewhere": theirs, **store["providers"]},
        "credential_pool": {"elsewhere": [theirs], **store.get("credential_pool", {})},
    }


def strangers(store: Json) -> Json:
    """What is neither xAI's nor a note of Hermes about the file as a whole."""
    for key in ("version", "updated_at", "active_provider"):
        store.pop(key, None)
    for room in ("providers", "credential_pool"):
        store[room].pop("xai-oauth", None)
    return store
