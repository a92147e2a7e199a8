"""The only reader of the environment: every setting, its unit, its default and its limits.

What the environment does not say, the settings file may (`settings_file`).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from grok_oauth_proxy.address import ADDRESS_FILE
from grok_oauth_proxy.errors import ConfigurationError
from grok_oauth_proxy.origins import UntrustedOrigin, trusted_url
from grok_oauth_proxy.settings_file import BadSettingsFile, read_settings_file, settings_file

MIN_API_KEY_LENGTH = 16

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@*\s]+)(:[0-9]{1,5})?|[0-9a-f]*:[0-9a-f:.]*:[0-9a-f.]*")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")


_OF_OTHERS = frozenset({"PROXY_USER"})
"""What other programs read, though it looks like one of ours."""
_OF_LIBRARIES = re.compile(r"(HTTPS?|ALL|NO)_PROXY|(https?|all|no)_proxy|SSL_CERT_(FILE|DIR)|OTEL_[A-Z_]+")
"""What the settings file may hold too, though it is no setting."""
_from_file: set[str] = set()
"""What stands in the environment of this process because the settings file says so."""
_OTLP = "http/protobuf"


_PATHS = ("proxy_uds", "proxy_tls_cert", "proxy_tls_key", "proxy_api_keys_file")


class Settings(BaseSettings):
    """All settings, from environment variables of the same name in upper case. Times are seconds."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    # First, because the two addresses below are checked against it.
    grok_proxy_allow_loopback_upstream: bool = False

    proxy_host: str = "127.0.0.1"
    proxy_port: int = Field(default=9996, ge=0, le=65535)
    proxy_tcp: bool = True
    proxy_uds: Path | None = None
    proxy_tls_cert: Path | None = None
    proxy_tls_key: Path | None = None
    proxy_max_connections: int = Field(default=10_000, ge=1, le=1_000_000)
    proxy_max_connections_per_client: int = Field(default=0, ge=0, le=1_000_000)
    proxy_head_timeout: float = Field(default=10.0, gt=0, le=3600)
    proxy_body_timeout: float = Field(default=60.0, gt=0, le=86400)
    proxy_max_body: int = Field(default=1024**3, ge=0)
    proxy_drain_timeout: float = Field(default=30.0, ge=0, le=3600)
    proxy_workers: int = Field(default=1, ge=1, le=64)
    proxy_max_requests: int = Field(default=1024, ge=0, le=1_000_000)
    proxy_max_streams: int = Field(default=512, ge=0, le=1_000_000)
    proxy_api_key: SecretStr | None = None
    proxy_api_keys_file: Path | None = None
    proxy_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    proxy_allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()

    credential_source: Literal["auto", "own", "hermes", "api-key"] = "auto"
    xai_api_key: SecretStr | None = None
    api_key_fallback: Literal["off", "entitlement"] = "off"

    grok_proxy_auth_state: Path = Field(
        default_factory=lambda: Path.home() / ".local/state/grok-oauth-proxy/auth_state.json"
    )
    hermes_home: Path = Field(default_factory=lambda: Path.home() / ".hermes")
    hermes_auth_path: Path | None = None
    hermes_cli_required: bool = True
    hermes_poll_interval: float = Field(default=5.0, ge=0.1, le=3600)

    token_refresh_window: float = Field(default=300.0, ge=0, le=86400)
    upstream_retry_attempts: int = Field(default=2, ge=0, le=10)
    upstream_retry_delay: float = Field(default=1.0, ge=0, le=60)
    upstream_connect_timeout: float = Field(default=10.0, gt=0, le=600)
    upstream_read_timeout: float = Field(default=3600.0, gt=0, le=86400)
    upstream_warm_connections: int = Field(default=2, ge=0, le=100)
    replay_body_limit: int = Field(default=8 * 1024 * 1024, ge=0, le=1024**3)

    xai_base_url: str = "https://api.x.ai/v1"
    xai_oauth_issuer: str = "https://auth.x.ai"
    xai_oauth_client_id: str | None = Field(default=None, max_length=256)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    otel_exporter_otlp_endpoint: str | None = None
    otel_exporter_otlp_protocol: str = _OTLP
    proxy_trace_upstream: bool = False

    @field_validator("proxy_allowed_hosts", "proxy_allowed_origins", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(item.strip().rstrip("/").lower() for item in value.split(",") if item.strip())

    @field_validator("proxy_allowed_origins")
    @classmethod
    def _each_origin_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if {"*", "null"} & {*value}:
            raise ValueError("name each origin; * or null would let every web page spend your quota")
        if not all(_ORIGIN.fullmatch(origin) for origin in value):
            raise ValueError("write each origin like https://page.example:8443")
        return value

    @field_validator("log_level", "log_format", "credential_source", "api_key_fallback", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("grok_proxy_auth_state", "hermes_home", "hermes_auth_path", *_PATHS)
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        try:
            return value.expanduser() if value else None
        except RuntimeError:
            raise ValueError("its ~ names no home directory") from None

    @field_validator("grok_proxy_auth_state", "hermes_auth_path", *_PATHS)
    @classmethod
    def _a_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.name.strip("."):
            raise ValueError("name a file, not a folder")
        return value

    @field_validator("proxy_allowed_hosts")
    @classmethod
    def _each_host_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_HOST.fullmatch(host) for host in value):
            raise ValueError("write each host like box.example or box.example:9996")
        return tuple(host.strip("[]") if host.endswith("]") else host for host in value)

    @field_validator("proxy_host")
    @classmethod
    def _bare_address(cls, value: str) -> str:
        return value.strip("[]")  # as IPv6 addresses are written in URLs

    @field_validator("proxy_api_key", "xai_api_key")
    @classmethod
    def _header_safe(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not all(0x21 <= ord(character) <= 0x7E for character in value.get_secret_value()):
            raise ValueError("use visible ASCII characters only, without blanks")
        return value

    @field_validator("xai_base_url", "xai_oauth_issuer")
    @classmethod
    def _trusted(cls, value: str, info: ValidationInfo) -> str:
        try:
            return trusted_url(
                value, allow_loopback=info.data.get("grok_proxy_allow_loopback_upstream", False)
            )
        except UntrustedOrigin as error:
            raise ValueError(str(error)) from None

    @property
    def keys_file(self) -> Path:
        """Where the named keys of clients are, if there are any."""
        return self.proxy_api_keys_file or self.grok_proxy_auth_state.with_name("keys.json")

    @property
    def hermes_stores(self) -> tuple[Path, ...]:
        """Hermes' auth files in the order they are searched: a named profile falls back to the root store."""
        if self.hermes_auth_path:
            return (self.hermes_auth_path,)
        own = self.hermes_home / "auth.json"
        if self.hermes_home.parent.name == "profiles":
            return (own, self.hermes_home.parent.parent / "auth.json")
        return (own,)


RELOADED = frozenset(
    {
        "proxy_drain_timeout",
        "proxy_max_requests",
        "proxy_max_streams",
        "proxy_api_key",
        "proxy_allowed_hosts",
        "proxy_allowed_origins",
        "upstream_retry_attempts",
        "upstream_retry_delay",
        "log_level",
        "log_format",
    }
)
"""What may change while the proxy runs. All else counts after a restart."""


def load_settings(added: Mapping[str, str] | None = None) -> Settings:
    """Read and check the environment and the settings file, again if need be; the environment wins.

    `added` counts in the place of what the file says, where another process has read that. Raises
    `ConfigurationError` that names the first bad variable. What the file says stands in the environment
    afterwards, for those that read their own variables there: the egress proxy, TLS, tracing.
    """
    try:
        return _checked(_read_file() if added is None else dict(added))
    except RuntimeError:
        # Path.home() finds neither HOME nor a password entry.
        raise ConfigurationError("No home directory is known. Set HOME.") from None


def environment_as_given() -> dict[str, str]:
    """The environment without what the settings file has added, for processes that read the file too."""
    return {name: value for name, value in os.environ.items() if name not in _from_file}


def added_by_file() -> dict[str, str]:
    """What the settings file has added to the environment, as it was read last."""
    return {name: os.environ[name] for name in _from_file if name in os.environ}


def given_settings() -> dict[str, str]:
    """What the environment itself says and the settings file could: settings, and what libraries read."""
    known = {name.upper() for name in Settings.model_fields}
    found = {}
    for name, value in environment_as_given().items():
        if value and name.upper() in known:
            found[name.upper()] = value
        elif value and _OF_LIBRARIES.fullmatch(name):
            found[name] = value
    return found


def _read_file() -> dict[str, str]:
    """What the settings file says and the environment does not."""
    path = settings_file()
    try:
        said = read_settings_file(path)
    except BadSettingsFile as error:
        raise ConfigurationError(str(error)) from None
    known = {name.upper() for name in Settings.model_fields}
    _refuse_misspellings(said)
    for name in said:
        if name not in known and not _OF_LIBRARIES.fullmatch(name):
            raise ConfigurationError(f"{name} in {path} is not a setting. Correct or remove it.")
    # A setting counts however its name is written; for libraries https_proxy and HTTPS_PROXY are two.
    given = {
        name.upper() if name.upper() in known else name
        for name, value in environment_as_given().items()
        if value
    }
    return {name: value for name, value in said.items() if name not in given}


def _checked(added: dict[str, str]) -> Settings:
    """The settings of the environment and what is `added`, which stays there unless they are bad."""
    before = added_by_file()
    _replace_added(added)
    try:
        settings = _read()
        _require_a_file_of_its_own(settings)
        _require_key(settings)
        _require_both_halves(settings)
        _require_http_for_traces(settings)
    except ConfigurationError:
        _replace_added(before)
        raise
    # Read by FastAPI when it is imported, which ends with a traceback for a name it does not know. What is
    # spoken here is W3C's trace context alone.
    os.environ.pop("OTEL_PROPAGATORS", None)
    return settings


def _replace_added(added: dict[str, str]) -> None:
    for name in _from_file:
        os.environ.pop(name, None)
    os.environ.update(added)
    _from_file.clear()
    _from_file.update(added)


def _read() -> Settings:
    _refuse_misspellings(os.environ)
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = str(first["loc"][0]).upper() if first["loc"] else "settings"
        reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
        raise ConfigurationError(f"{name} has a bad value: {reason}. Correct or unset it.") from None


def _require_a_file_of_its_own(settings: Settings) -> None:
    state, keys = _resolved(settings.grok_proxy_auth_state), _resolved(settings.keys_file)
    names = {
        "Hermes' own store": settings.hermes_stores,
        "the proxy's own login": (state.with_name("login.json"),),
        "the file of the proxy's address": (state.with_name(ADDRESS_FILE),),
    }
    for name, paths in names.items():
        for setting, taken in (("GROK_PROXY_AUTH_STATE", state), ("PROXY_API_KEYS_FILE", keys)):
            if any(taken == _resolved(path) for path in paths):
                raise ConfigurationError(f"{setting} names {name}. Unset it, or name another file.")
    if keys == state:
        raise ConfigurationError(
            "PROXY_API_KEYS_FILE and GROK_PROXY_AUTH_STATE name the same file. Name another one."
        )


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError:  # Python 3.13 and later tell nothing
        raise ConfigurationError(f"{path} is a link that leads to itself. Remove it.") from None


def _require_key(settings: Settings) -> None:
    if settings.xai_api_key:
        return
    for name, value in (
        ("CREDENTIAL_SOURCE", settings.credential_source),
        ("API_KEY_FALLBACK", settings.api_key_fallback),
    ):
        if value in ("api-key", "entitlement"):
            raise ConfigurationError(
                f"{name} is {value}, but there is no key. Set XAI_API_KEY to one from the xAI console."
            )


def _require_http_for_traces(settings: Settings) -> None:
    endpoint = settings.otel_exporter_otlp_endpoint
    if endpoint is None:
        return
    if not re.match(r"https?://[^/\s]", endpoint):
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT has a bad value. Write it like http://127.0.0.1:4318, or unset it."
        )
    if settings.otel_exporter_otlp_protocol != _OTLP:
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL has a bad value: only {_OTLP} is spoken here. Correct or unset it, "
            "and let OTEL_EXPORTER_OTLP_ENDPOINT name the collector's port for it, 4318 as a rule."
        )


def _require_both_halves(settings: Settings) -> None:
    if (settings.proxy_tls_cert is None) != (settings.proxy_tls_key is None):
        missing, there = "PROXY_TLS_CERT", "PROXY_TLS_KEY"
        if settings.proxy_tls_key is None:
            missing, there = there, missing
        raise ConfigurationError(
            f"{there} is set, but {missing} is not. TLS needs both: set it, or unset both."
        )


def _guards_the_port(bare: str, squeezed: Iterable[str]) -> bool:
    """Whether a name without its underscores is nearly one of the settings that keep others out."""
    guards = [name for name in squeezed if name.startswith(("PROXY", "GROK"))]
    return bool(difflib.get_close_matches(bare, guards, n=1, cutoff=0.9))


def _refuse_misspellings(environment: Iterable[str]) -> None:
    known = {name.upper() for name in Settings.model_fields}
    prefixes = tuple({name.split("_")[0] + "_" for name in known})
    squeezed = {name.replace("_", ""): name for name in known}
    for name in sorted(environment):
        bare = name.upper().replace("_", "")
        if name.upper().startswith("OTEL_"):
            continue  # a standard of many names
        if name.upper() in known | _OF_OTHERS or not (
            name.upper().startswith(prefixes) or _guards_the_port(bare, squeezed)
        ):
            continue
        # PROXY_KEY is as near to PROXY_TLS_KEY, but it is the other one that people mean.
        swapped = [other for other in squeezed if sorted(other) == sorted(bare.replace("YKEY", "YAPIKEY"))]
        # A mistyped PROXY_API_KEY would leave the port open, so these prefixes are judged more strictly.
        cutoff = 0.8 if bare.startswith(("PROXY", "GROK")) else 0.9
        match = swapped or difflib.get_close_matches(bare, squeezed, n=1, cutoff=cutoff)
        if not match and re.fullmatch(r"PROXY_.*(KEY|TOKEN|PASSWORD|SECRET)", name.upper()):
            match = ["PROXYAPIKEY"]
        if match:
            raise ConfigurationError(
                f"{name} is not a setting. Did you mean {squeezed[match[0]]}? Rename or unset it."
            )
