"""What the environment may say, and what it is told when it says something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from grok_oauth_proxy.errors import ConfigurationError
from grok_oauth_proxy.settings import Settings, load_settings

CANARY = "canary-key-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Nothing but a home."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def refusal() -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is None
    return caught.value.message


def test_defaults(tmp_path: Path) -> None:
    """Without any variable the proxy is on loopback, at the real xAI, with Hermes' own store."""
    settings = load_settings()
    assert settings.model_dump() == {
        "grok_proxy_allow_loopback_upstream": False,
        "proxy_host": "127.0.0.1",
        "proxy_port": 9996,
        "proxy_tcp": True,
        "proxy_uds": None,
        "proxy_tls_cert": None,
        "proxy_tls_key": None,
        "proxy_max_connections": 10_000,
        "proxy_max_connections_per_client": 0,
        "proxy_head_timeout": 10.0,
        "proxy_body_timeout": 60.0,
        "proxy_max_body": 1024**3,
        "proxy_drain_timeout": 30.0,
        "proxy_max_requests": 1024,
        "proxy_max_streams": 512,
        "proxy_api_key": None,
        "proxy_api_keys_file": None,
        "proxy_allowed_hosts": (),
        "proxy_allowed_origins": (),
        "credential_source": "auto",
        "xai_api_key": None,
        "api_key_fallback": "off",
        "grok_proxy_auth_state": tmp_path / ".local/state/grok-oauth-proxy/auth_state.json",
        "hermes_home": tmp_path / ".hermes",
        "hermes_auth_path": None,
        "hermes_cli_required": True,
        "hermes_poll_interval": 5.0,
        "token_refresh_window": 300.0,
        "upstream_retry_attempts": 2,
        "upstream_retry_delay": 1.0,
        "upstream_connect_timeout": 10.0,
        "upstream_read_timeout": 3600.0,
        "upstream_warm_connections": 2,
        "proxy_workers": 1,
        "replay_body_limit": 8 * 1024 * 1024,
        "xai_base_url": "https://api.x.ai/v1",
        "xai_oauth_issuer": "https://auth.x.ai",
        "xai_oauth_client_id": None,
        "log_level": "info",
        "log_format": "text",
        "otel_exporter_otlp_endpoint": None,
        "otel_exporter_otlp_protocol": "http/protobuf",
        "proxy_trace_upstream": False,
    }
    assert settings.hermes_stores == (tmp_path / ".hermes/auth.json",)


READ = {
    "GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM": ("true", True),
    "PROXY_HOST": ("0.0.0.0", "0.0.0.0"),
    "PROXY_PORT": ("0", 0),
    "PROXY_TCP": ("false", False),
    "PROXY_UDS": ("/srv/sock", Path("/srv/sock")),
    "PROXY_MAX_CONNECTIONS": ("1", 1),
    "PROXY_MAX_CONNECTIONS_PER_CLIENT": ("9", 9),
    "PROXY_HEAD_TIMEOUT": ("0.5", 0.5),
    "PROXY_BODY_TIMEOUT": ("0.5", 0.5),
    "PROXY_MAX_BODY": ("0", 0),
    "PROXY_DRAIN_TIMEOUT": ("0", 0.0),
    "PROXY_MAX_REQUESTS": ("0", 0),
    "PROXY_API_KEYS_FILE": ("/srv/keys.json", Path("/srv/keys.json")),
    "PROXY_MAX_STREAMS": ("1000000", 1_000_000),
    "LOG_FORMAT": ("JSON", "json"),
    "PROXY_ALLOWED_HOSTS": (" Box.local, box:9996 ,, ", ("box.local", "box:9996")),
    "PROXY_ALLOWED_ORIGINS": ("https://App.example/, http://b:1", ("https://app.example", "http://b:1")),
    "GROK_PROXY_AUTH_STATE": ("/srv/state.json", Path("/srv/state.json")),
    "HERMES_HOME": ("/srv/hermes", Path("/srv/hermes")),
    "HERMES_AUTH_PATH": ("/srv/auth.json", Path("/srv/auth.json")),
    "HERMES_CLI_REQUIRED": ("false", False),
    "HERMES_POLL_INTERVAL": ("0.1", 0.1),
    "TOKEN_REFRESH_WINDOW": ("0", 0.0),
    "UPSTREAM_RETRY_ATTEMPTS": ("0", 0),
    "UPSTREAM_RETRY_DELAY": ("0", 0.0),
    "UPSTREAM_CONNECT_TIMEOUT": ("0.5", 0.5),
    "UPSTREAM_READ_TIMEOUT": ("86400", 86400.0),
    "UPSTREAM_WARM_CONNECTIONS": ("0", 0),
    "PROXY_WORKERS": ("4", 4),
    "REPLAY_BODY_LIMIT": ("0", 0),
    "XAI_BASE_URL": ("https://eu.api.x.ai/v1/", "https://eu.api.x.ai/v1"),
    "XAI_OAUTH_ISSUER": ("https://login.x.ai", "https://login.x.ai"),
    "XAI_OAUTH_CLIENT_ID": ("client-7", "client-7"),
    "CREDENTIAL_SOURCE": ("HERMES", "hermes"),
    "API_KEY_FALLBACK": ("Off", "off"),
    "LOG_LEVEL": ("DEBUG", "debug"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("https://box.example:4318/x", "https://box.example:4318/x"),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("grpc", "grpc"),  # of no concern without an endpoint
    "PROXY_TRACE_UPSTREAM": ("true", True),
}


@pytest.mark.parametrize(("name", "text", "value"), [(name, *pair) for name, pair in READ.items()], ids=READ)
def test_read(environment: pytest.MonkeyPatch, name: str, text: str, value: object) -> None:
    """Every variable is read, and reaches the setting of its name."""
    environment.setenv(name, text)
    assert getattr(load_settings(), name.lower()) == value


def test_the_table_is_whole() -> None:
    """Each setting but the keys and those of TLS, which have their own tests, is in the table above."""
    elsewhere = {"proxy_api_key", "xai_api_key", "proxy_tls_cert", "proxy_tls_key"}
    assert {name.lower() for name in READ} == set(Settings.model_fields) - elsewhere


@pytest.mark.parametrize("there", [0, 1])
def test_both_halves_of_tls(environment: pytest.MonkeyPatch, there: int) -> None:
    """Certificate and key are set together or not at all."""
    names = ["PROXY_TLS_CERT", "PROXY_TLS_KEY"]
    environment.setenv(names[there], "~/tls.pem")
    assert refusal().startswith(f"{names[there]} is set, but {names[1 - there]} is not.")
    environment.setenv(names[1 - there], "/srv/tls.pem")
    settings = load_settings()
    assert {settings.proxy_tls_cert, settings.proxy_tls_key} == {
        Path.home() / "tls.pem",
        Path("/srv/tls.pem"),
    }


def test_key(environment: pytest.MonkeyPatch) -> None:
    """The key is read, and shown by nothing that prints the settings."""
    environment.setenv("PROXY_API_KEY", CANARY)
    settings = load_settings()
    assert settings.proxy_api_key is not None
    assert settings.proxy_api_key.get_secret_value() == CANARY
    assert CANARY not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.parametrize("name", [*READ, "PROXY_API_KEY"])
def test_empty_means_unset(environment: pytest.MonkeyPatch, name: str) -> None:
    """A variable that is set to nothing counts as not set."""
    default = load_settings()
    environment.setenv(name, "")
    assert load_settings() == default


def test_home_is_expanded(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tilde in a path, which a service manager leaves alone, means the home directory."""
    names = ("grok_proxy_auth_state", "hermes_home", "hermes_auth_path")
    for name in names:
        environment.setenv(name.upper(), f"~/{name}")
    settings = load_settings()
    assert [getattr(settings, name) for name in names] == [tmp_path / name for name in names]


def test_hosts_as_they_are_written(environment: pytest.MonkeyPatch) -> None:
    """An IPv6 address may be allowed with brackets, as in a URL, or without."""
    environment.setenv("PROXY_ALLOWED_HOSTS", "[fd00::1], fd00::2, box.example:9996, [fd00::3]:1")
    assert load_settings().proxy_allowed_hosts == ("fd00::1", "fd00::2", "box.example:9996", "[fd00::3]:1")


def test_frozen() -> None:
    """Settings do not change once they were read."""
    with pytest.raises(ValidationError):
        load_settings().proxy_port = 1  # type: ignore[misc]  # what the test is about


BAD = [
    ("GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM", "perhaps"),
    ("PROXY_PORT", "-1"),
    ("PROXY_PORT", "65536"),
    ("PROXY_PORT", "http"),
    ("PROXY_PORT", "80.5"),
    ("PROXY_API_KEY", f"{CANARY} blank"),
    ("PROXY_API_KEY", f"{CANARY}\tx"),
    ("PROXY_API_KEY", f"{CANARY}\u00e9"),
    ("PROXY_API_KEY", f"{CANARY}\x7f"),
    ("PROXY_ALLOWED_ORIGINS", "*"),
    ("PROXY_ALLOWED_ORIGINS", "https://a.example, *"),
    ("HERMES_CLI_REQUIRED", "maybe"),
    ("HERMES_POLL_INTERVAL", "0.09"),
    ("HERMES_POLL_INTERVAL", "nan"),
    ("HERMES_POLL_INTERVAL", "inf"),
    ("TOKEN_REFRESH_WINDOW", "-1"),
    ("TOKEN_REFRESH_WINDOW", "nan"),
    ("UPSTREAM_RETRY_ATTEMPTS", "11"),
    ("UPSTREAM_RETRY_ATTEMPTS", "1.5"),
    ("UPSTREAM_RETRY_DELAY", "61"),
    ("UPSTREAM_RETRY_DELAY", "nan"),
    ("UPSTREAM_CONNECT_TIMEOUT", "0"),
    ("UPSTREAM_READ_TIMEOUT", "0"),
    ("UPSTREAM_READ_TIMEOUT", "forever"),
    ("UPSTREAM_WARM_CONNECTIONS", "-1"),
    ("PROXY_WORKERS", "0"),
    ("PROXY_WORKERS", "65"),
    ("UPSTREAM_WARM_CONNECTIONS", "101"),
    ("PROXY_MAX_REQUESTS", "-1"),
    ("PROXY_MAX_STREAMS", "many"),
    ("REPLAY_BODY_LIMIT", "-1"),
    ("REPLAY_BODY_LIMIT", "1e99"),
    ("XAI_BASE_URL", "https://x.ai.evil.com/v1"),
    ("XAI_BASE_URL", "http://api.x.ai/v1"),
    ("XAI_BASE_URL", f"https://me:{CANARY}@api.x.ai/v1"),
    ("XAI_OAUTH_ISSUER", "https://evilx.ai"),
    ("XAI_OAUTH_ISSUER", "not a url"),
    ("XAI_OAUTH_CLIENT_ID", "x" * 257),
    ("LOG_LEVEL", "chatty"),
]


@pytest.mark.parametrize(
    ("name", "value"), BAD, ids=[f"{name}-{number}" for number, (name, _) in enumerate(BAD)]
)
def test_bad_value(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A bad value is refused in one line that names the variable, says what to do and repeats no secret."""
    environment.setenv("PROXY_API_KEY", CANARY)
    environment.setenv(name, value)
    message = refusal()
    assert message.startswith(f"{name} has a bad value: ")
    assert message.endswith("Correct or unset it.")
    assert "\n" not in message
    assert "canary" not in message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("XAI_BASE_URL", "https://evil.example/v1", "only https addresses on x.ai"),
        ("XAI_OAUTH_ISSUER", "http://auth.x.ai", "only https addresses on x.ai"),
        ("XAI_BASE_URL", "http://127.0.0.1:1/v1", "only https addresses on x.ai"),
        ("XAI_BASE_URL", f"https://{'a' * 64}.x.ai/v1", "only https addresses on x.ai"),
        ("PROXY_KEY", "abc", "Did you mean PROXY_API_KEY"),
        ("XAI_BASE_URL", "https://\u00fc.x.ai/v1", "it must be plain"),
        ("GROK_PROXY_AUTH_STATE", "~nosuchuser/x", "names no home directory"),
        ("PROXY_ALLOWED_ORIGINS", "localhost:3000", "write each origin like"),
        ("PROXY_ALLOWED_HOSTS", "*", "write each host like"),
        ("PROXY_ALLOWED_HOSTS", "http://box.example", "write each host like"),
        ("HERMES_AUTH_PATH", "/", "name a file"),
        ("GROK_PROXY_AUTH_STATE", ".", "name a file"),
    ],
)
def test_what_would_be_right(environment: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    """Where a value is refused for more than its type, the line says what would be accepted, or was meant."""
    environment.setenv(name, value)
    message = refusal()
    assert message.startswith(name)
    assert said in message


def test_the_error_behind_the_line(environment: pytest.MonkeyPatch) -> None:
    """The validation error itself, should it ever be printed, does not quote the key either."""
    environment.setenv("PROXY_API_KEY", f"{CANARY} blank")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "canary" not in str(caught.value)


MISSPELT = {
    "PROXY_APIKEY": "PROXY_API_KEY",
    "PROXY_PASSWORD": "PROXY_API_KEY",
    "PROXY_AUTH_KEY": "PROXY_API_KEY",
    "PROXY_ACCESS_TOKEN": "PROXY_API_KEY",
    "PROXY_API_KEYS": "PROXY_API_KEY",
    "PROXY_API_KEY_FILE": "PROXY_API_KEYS_FILE",
    "PROXY_HOSTS": "PROXY_HOST",
    "PROXY_PORTS": "PROXY_PORT",
    "PROXY_ALLOWED_HOST": "PROXY_ALLOWED_HOSTS",
    "PROXY_ALLOWED_ORIGIN": "PROXY_ALLOWED_ORIGINS",
    "GROK_PROXY_AUTHSTATE": "GROK_PROXY_AUTH_STATE",
    "GROK_PROXY_ALLOW_LOOPBACK_UPSTREAMS": "GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM",
    "HERMES_AUTHPATH": "HERMES_AUTH_PATH",
    "HERMES_POL_INTERVAL": "HERMES_POLL_INTERVAL",
    "TOKEN_REFRESH_WINDOWS": "TOKEN_REFRESH_WINDOW",
    "UPSTREAM_RETRY_ATTEMPT": "UPSTREAM_RETRY_ATTEMPTS",
    "REPLAY_BODYLIMIT": "REPLAY_BODY_LIMIT",
    "XAI_BASEURL": "XAI_BASE_URL",
    "XAI_BASE_ULR": "XAI_BASE_URL",
    "XAI_OAUTH_CLIENTID": "XAI_OAUTH_CLIENT_ID",
    "proxy_apikey": "PROXY_API_KEY",
    "PROXY_PROT": "PROXY_PORT",
    "LOG_LEVLE": "LOG_LEVEL",
    "PROXYAPIKEY": "PROXY_API_KEY",
    "PRXY_API_KEY": "PROXY_API_KEY",
}


@pytest.mark.parametrize(
    ("name", "meant"),
    [pytest.param(*pair, id=pair[0]) for pair in MISSPELT.items()],
)
def test_misspelt(environment: pytest.MonkeyPatch, name: str, meant: str) -> None:
    """A misspelt name is refused with the name that was meant, and without its value."""
    environment.setenv(name, CANARY)
    message = refusal()
    assert message.startswith(f"{name} is not a setting. Did you mean {meant}?")
    assert "canary" not in message


@pytest.mark.parametrize(
    "name",
    [
        "XAI_API_BASE",
        "XAI_OAUTH_TOKEN",
        "HERMES_PROFILE",
        "HERMES_INFERENCE_PROVIDER",
        "HERMES_XAI_OAUTH_TOKEN",
        "PROXY_URL",
        "PROXY_USER",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "LOG_FILE",
        "LOGNAME",
        "TOKEN",
        "UPSTREAM_URL",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "PATH",
    ],
)
def test_no_false_alarm(environment: pytest.MonkeyPatch, name: str) -> None:
    """Variables of other programs are left alone, also when they begin like ours."""
    before = load_settings()
    environment.setenv(name, "anything")
    assert load_settings() == before


@pytest.mark.parametrize("name", ["XAI_BASE_URL", "XAI_OAUTH_ISSUER"])
def test_loopback_upstream(environment: pytest.MonkeyPatch, name: str) -> None:
    """An upstream on loopback is accepted after GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM=true, and not before."""
    environment.setenv(name, "http://127.0.0.1:8000")
    assert name in refusal()
    environment.setenv("GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM", "true")
    assert getattr(load_settings(), name.lower()) == "http://127.0.0.1:8000"
    environment.setenv(name, "http://127.0.0.1.evil.com:8000")
    assert name in refusal()


@pytest.mark.parametrize("value", ["https://evil.com", "https://api.x.ai.evil.com", "http://192.168.0.1"])
def test_loopback_permission_is_no_more_than_that(environment: pytest.MonkeyPatch, value: str) -> None:
    """The permission for loopback opens nothing else."""
    environment.setenv("GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM", "true")
    environment.setenv("XAI_BASE_URL", value)
    assert refusal().startswith("XAI_BASE_URL has a bad value")


@pytest.mark.parametrize(
    ("home", "auth_path", "stores"),
    [
        ("/h/.hermes", None, ["/h/.hermes/auth.json"]),
        ("/h/.hermes/profiles/work", None, ["/h/.hermes/profiles/work/auth.json", "/h/.hermes/auth.json"]),
        ("/h/.hermes/profiles/work/", None, ["/h/.hermes/profiles/work/auth.json", "/h/.hermes/auth.json"]),
        ("/h/.hermes/profiles", None, ["/h/.hermes/profiles/auth.json"]),
        ("/h/.hermes/profiles/work", "/x/auth.json", ["/x/auth.json"]),
    ],
    ids=["root", "profile", "profile-with-slash", "folder-of-profiles", "named-file"],
)
def test_hermes_stores(
    environment: pytest.MonkeyPatch, home: str, auth_path: str | None, stores: list[str]
) -> None:
    """A named profile falls back to the root store; a named file is the only one."""
    environment.setenv("HERMES_HOME", home)
    if auth_path:
        environment.setenv("HERMES_AUTH_PATH", auth_path)
    assert [str(path) for path in load_settings().hermes_stores] == stores


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "box.example:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http:///v1"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ],
)
def test_traces_that_go_nowhere(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A collector that could not be reached, or not in the language spoken here, is refused by its name."""
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    environment.setenv(name, value)
    assert refusal().startswith(f"{name} has a bad value")


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "OTEL_SERVICE_NAME", "OTEL_ANYTHING"])
def test_other_otel_variables(environment: pytest.MonkeyPatch, name: str) -> None:
    """The standard's many other variables are no misspellings."""
    before = load_settings()
    environment.setenv(name, "x")
    assert load_settings() == before


@pytest.mark.parametrize("name", ["login.json", "auth_state.json"])
def test_keys_in_anothers_place(environment: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """The keys' file is no other file of the proxy: writing it would cost the login."""
    environment.setenv("PROXY_API_KEYS_FILE", str(tmp_path / ".local/state/grok-oauth-proxy" / name))
    assert refusal().startswith("PROXY_API_KEYS_FILE")
