"""Fixtures for the tests with the real Hermes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hermes.rig import Certificates, Rig, as_xai, rigged
from tests.sim.harness import Sim


@pytest.fixture(scope="session")
def hermes_bin() -> Path:
    """The bin directory of Hermes' own environment."""
    named = os.environ.get("GROK_PROXY_TEST_HERMES", "")
    if not named or not (Path(named) / "hermes").is_file():
        pytest.fail(
            "GROK_PROXY_TEST_HERMES does not name the bin directory of an environment with Hermes: "
            "run scripts/test, which makes one.",
            pytrace=False,
        )
    return Path(named).absolute()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.issue(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def _xai(certificates: Certificates) -> Iterator[Sim]:
    with as_xai(certificates) as sim:
        yield sim


@pytest.fixture
def rig(tmp_path: Path, certificates: Certificates, hermes_bin: Path, _xai: Sim) -> Iterator[Rig]:
    _xai.reset()
    with rigged(tmp_path, certificates, hermes_bin, _xai) as rig:
        yield rig
