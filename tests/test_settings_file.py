"""The settings file: what it may say, who reads it, and what is told when it is bad."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grok_oauth_proxy.errors import ConfigurationError
from grok_oauth_proxy.moving.surroundings import look_around, proxy_key
from grok_oauth_proxy.settings import environment_as_given, load_settings

CANARY = "canary-key-0123456789"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where it is; no other variable is set than where home is."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".config/grok-oauth-proxy.env"
    path.parent.mkdir()
    path.touch(mode=0o600)
    yield path
    path.unlink()
    load_settings()  # nothing of it stays in the environment


def refusal() -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert caught.value.exit_code == 2
    assert CANARY not in caught.value.message
    return caught.value.message


def test_it_counts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines are settings, for the scripts that move a login too; what the environment says wins."""
    file.write_text(
        "\ufeff# of the service\n; too\n\n  PROXY_PORT = 1234\nLOG_LEVEL=debug\r\n"
        f"PROXY_API_KEY='{CANARY}'\nHERMES_HOME=\"/srv/a b\"\nPROXY_ALLOWED_HOSTS=\n"
        "XAI_OAUTH_CLIENT_ID=a=b #c\nhttps_proxy=http://127.0.0.1:3128\n"
    )
    monkeypatch.setenv("LOG_LEVEL", "error")
    monkeypatch.setenv("PROXY_PORT", "")
    settings = load_settings()
    assert settings.proxy_api_key
    assert settings.proxy_api_key.get_secret_value() == proxy_key() == CANARY
    assert (settings.proxy_port, settings.log_level) == (1234, "error")
    assert settings.hermes_home == Path("/srv/a b") == look_around().hermes_stores[0].parent
    assert settings.xai_oauth_client_id == look_around().client_id == "a=b #c"
    assert os.environ["https_proxy"] == "http://127.0.0.1:3128"


def test_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again it counts as it is then, and all that it says no more is gone; bad, it changes nothing."""
    monkeypatch.setenv("PROXY_PORT", "1")
    file.write_text("PROXY_PORT=2\nLOG_LEVEL=debug\nHTTPS_PROXY=http://127.0.0.1:1\n")
    assert load_settings().log_level == "debug"
    file.write_text("LOG_LEVEL=loud\nNO_PROXY=*\n")
    assert refusal().startswith("LOG_LEVEL has a bad value")
    assert (os.environ["LOG_LEVEL"], "NO_PROXY" in os.environ) == ("debug", False)
    file.write_text("LOG_FORMAT=json\n")
    settings = load_settings()
    assert (settings.proxy_port, settings.log_level, settings.log_format) == (1, "info", "json")
    assert "HTTPS_PROXY" not in os.environ
    assert "LOG_FORMAT" in os.environ
    assert "LOG_FORMAT" not in environment_as_given()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PROXY_PORT\n", "line 1: not of the form NAME=value."),
        (b"\nPROXY_PORT=1\nrm -rf /\n", "line 3: not of the form NAME=value."),
        (b"export PROXY_PORT=1\n", "line 1: not of the form NAME=value."),
        (b'LOG_LEVEL="debug\n', "line 1: the quotes are not closed."),
        (b"PROXY_API_KEY=a\0b\n", "line 1: not of the form NAME=value."),
        (b"\xff\xfe", "is not UTF-8 text."),
        (b"#" * 65537, "is no file of settings."),
        (f"PROXY_APIKEY={CANARY}\n".encode(), "PROXY_APIKEY is not a setting. Did you mean PROXY_API_KEY?"),
        (b"PATH=/bin\n", "PATH in "),
        (b"PROXY_PORT=high\n", "PROXY_PORT has a bad value"),
    ],
)
def test_bad_content(file: Path, content: bytes, said: str) -> None:
    """What is not understood is refused by its line or name, and its value is not shown."""
    file.write_bytes(content)
    assert said in refusal()


def test_open_to_others(file: Path) -> None:
    """A file that others can read is refused with the command that closes it."""
    file.chmod(0o640)
    assert refusal().endswith(f"Run: chmod 600 {file}")


def test_no_file(file: Path) -> None:
    """A folder in its place is told; where its folder is a file there are no settings."""
    file.unlink()
    file.mkdir()
    assert str(file) in refusal()
    file.rmdir()
    file.parent.rmdir()
    file.parent.touch()
    assert load_settings().proxy_port == 9996
    file.parent.unlink()
    file.parent.mkdir()
    file.touch()


def test_pipe(file: Path) -> None:
    """A pipe in its place is refused at once, and not waited for."""
    file.unlink()
    os.mkfifo(file, 0o600)
    assert "is no file of settings" in refusal()


def test_refused_changes_nothing(file: Path) -> None:
    """What is refused only when all is known changes nothing either."""
    file.write_text("HTTPS_PROXY=http://127.0.0.1:1\n")
    load_settings()
    file.write_text("HTTPS_PROXY=http://127.0.0.1:2\nCREDENTIAL_SOURCE=api-key\n")
    assert "XAI_API_KEY" in refusal()
    assert os.environ["HTTPS_PROXY"].endswith(":1")
    del os.environ["HTTPS_PROXY"]
    assert "XAI_API_KEY" in refusal()


def test_small_letters(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says wins, however the name is written there."""
    monkeypatch.setenv("log_level", "error")
    file.write_text("LOG_LEVEL=debug\n")
    assert load_settings().log_level == "error"


def test_circle(file: Path, tmp_path: Path) -> None:
    """A link that leads to itself is no state file, and ends in a sentence."""
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    file.write_text(f"GROK_PROXY_AUTH_STATE={circle}\n")
    if sys.version_info < (3, 13):
        assert str(circle) in refusal()
