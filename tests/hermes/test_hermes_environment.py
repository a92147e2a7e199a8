"""Hermes' environment variables and ours live side by side."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from grok_oauth_proxy.errors import ConfigurationError
from grok_oauth_proxy.settings import Settings, load_settings

QUOTED = re.compile(r"""["']((?:HERMES|XAI|GROK|PROXY|TOKEN|UPSTREAM|REPLAY|LOG)_[A-Z0-9_]+)["']""")
SHARED = {"HERMES_HOME", "XAI_API_KEY", "XAI_BASE_URL"}
"""Settings of ours that Hermes reads as well, with the same meaning."""


@pytest.fixture(scope="module")
def names(hermes_bin: Path) -> set[str]:
    """Whatever looks like one of our settings in Hermes' sources; not all of these are variables."""
    found: set[str] = set()
    for path in sources(hermes_bin):
        found.update(QUOTED.findall(path.read_text(encoding="utf-8", errors="replace")))
    return found


def sources(hermes_bin: Path) -> list[Path]:
    folders = [str(folder) for folder in hermes_bin.parent.glob("lib/python*/site-packages")]
    installed: list[Distribution] = list(distributions(name="hermes-agent", path=folders))
    assert len(installed) == 1
    return [Path(str(file.locate())) for file in installed[0].files or [] if file.suffix == ".py"]


def test_no_variable_of_hermes_is_a_misspelling(names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables Hermes reads stops the proxy as a misspelt setting, XAI_API_KEY included."""
    assert len(names) > 200
    assert {"XAI_API_KEY", "HERMES_XAI_BASE_URL"} <= names
    refused = []
    for name in sorted(names - SHARED):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            try:
                load_settings()
            except ConfigurationError as error:
                refused.append(str(error))
    assert refused == []


def test_shared_settings(names: set[str]) -> None:
    """Only the settings with the same meaning in both programs have the same name."""
    assert {name.upper() for name in Settings.model_fields} & names == SHARED
