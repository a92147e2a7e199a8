"""Where this machine keeps logins: the same variables, defaults and rules as in settings.py.

A second reader of the environment and the settings file, because settings.py needs libraries that a server
may not have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from grok_oauth_proxy.address import ADDRESS_FILE
from grok_oauth_proxy.moving.problems import Problem
from grok_oauth_proxy.settings_file import BadSettingsFile, read_settings_file, settings_file

KEYS = frozenset({"PROXY_API_KEY", "XAI_API_KEY"})
"""The settings that are secrets."""

_YES = frozenset({"1", "true", "t", "yes", "y", "on"})
_NO = frozenset({"0", "false", "f", "no", "n", "off"})


@dataclass(frozen=True)
class Surroundings:
    """Files and settings of this machine; `hermes_stores` in the order they are searched."""

    hermes_stores: tuple[Path, ...]
    state: Path
    issuer: str
    client_id: str | None
    wanted: str | None
    """Whose login CREDENTIAL_SOURCE names: own, hermes, or nobody's."""
    allow_loopback: bool

    @property
    def own(self) -> Path:
        """The proxy's own login."""
        return self.state.with_name("login.json")

    @property
    def address(self) -> Path:
        """One line: the URL of the running proxy."""
        return self.state.with_name(ADDRESS_FILE)


def look_around() -> Surroundings:
    """Read the settings; raise `Problem` with exit code 2 for a bad value. An empty one counts as none."""
    set_ = _settings()
    hermes_home = _path(set_, "HERMES_HOME", "~/.hermes")
    stores: tuple[Path, ...] = (hermes_home / "auth.json",)
    if "HERMES_AUTH_PATH" in set_:
        stores = (_path(set_, "HERMES_AUTH_PATH", ""),)
    elif hermes_home.parent.name == "profiles":
        stores = (*stores, hermes_home.parent.parent / "auth.json")
    return Surroundings(
        hermes_stores=stores,
        state=_path(set_, "GROK_PROXY_AUTH_STATE", "~/.local/state/grok-oauth-proxy/auth_state.json"),
        issuer=set_.get("XAI_OAUTH_ISSUER", "https://auth.x.ai").rstrip("/"),
        client_id=set_.get("XAI_OAUTH_CLIENT_ID"),
        wanted=wanted if (wanted := set_.get("CREDENTIAL_SOURCE", "").lower()) in ("own", "hermes") else None,
        allow_loopback=_truth(set_, "GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM"),
    )


def proxy_key() -> str | None:
    """The key of the running proxy, where it is known."""
    return _settings().get("PROXY_API_KEY")


def _settings() -> dict[str, str]:
    """What the environment says, and the settings file where it does not."""
    try:
        said = read_settings_file(settings_file())
    except BadSettingsFile as error:
        raise Problem(str(error), exit_code=2) from None
    except RuntimeError:
        raise Problem("No home directory is known. Set HOME.", exit_code=2) from None
    return {name: value for name, value in (*said.items(), *os.environ.items()) if value}


def without_keys(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For programs that this one starts: they need no key of the proxy, and may keep what they are given."""
    return {name: value for name, value in environment.items() if name.upper() not in KEYS}


def forget_keys(environment: MutableMapping[str, str] = os.environ) -> None:
    """Where a program is started that is given the whole environment."""
    for name in environment.keys() - without_keys(environment).keys():
        del environment[name]


def proxy_certificate(environment: Mapping[str, str] = os.environ) -> Path | None:
    """What the running proxy shows, where that is known."""
    name = "PROXY_TLS_CERT"
    return _path(environment, name, "") if environment.get(name) else None


def service_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For `systemctl --user`, which over ssh without PAM does not find the user's manager by itself."""
    return {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}", **without_keys(environment)}


def _path(environment: Mapping[str, str], name: str, default: str) -> Path:
    try:
        return Path(environment.get(name, default)).expanduser()
    except RuntimeError:
        raise Problem(
            f"The home directory for {name} is not known. Set HOME or {name}.", exit_code=2
        ) from None


def _truth(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "false").lower()
    if value not in _YES | _NO:
        raise Problem(f"{name} has a bad value: it must be true or false. Correct or unset it.", exit_code=2)
    return value in _YES
