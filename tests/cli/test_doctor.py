"""`doctor` in a process of its own: what is right is found right, and each thing that is wrong is named."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from grok_oauth_proxy import __version__
from grok_oauth_proxy.cli.checks.service import check_service
from grok_oauth_proxy.cli.checks.stores import check_keys
from grok_oauth_proxy.settings import Settings
from tests.cli.canned import canned, closed_port
from tests.cli.own import own_login
from tests.harness import Home, Json, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim

KEY = "canary-of-the-proxy-key"


def examine(env: dict[str, str], *options: str) -> tuple[int, dict[str, Json]]:
    """The exit code of `doctor --json` and its findings by name; of several with a name the first."""
    ended = run(env, "doctor", "--json", *options)
    assert ended.stderr == ""
    assert "eyJ" not in ended.stdout  # how every JWT begins
    told = json.loads(ended.stdout)
    assert told["wrong"] == sum(finding["state"] == "wrong" for finding in told["checks"])
    findings: dict[str, Json] = {}
    for finding in told["checks"]:
        assert set(finding) == {"name", "state", "sentence", "fix"}
        findings.setdefault(finding["name"], finding)
    assert ended.returncode == (1 if told["wrong"] else 0)
    return ended.returncode, findings


def wrong(env: dict[str, str], name: str, *options: str) -> str:
    """Sentence and fix of a check that must find something wrong."""
    code, findings = examine(env, *options)
    finding = findings[name]
    assert (code, finding["state"]) == (1, "wrong"), finding
    assert finding["fix"], finding
    return f"{finding['sentence']} → {finding['fix']}"


def test_all_is_well(home: Home, shared_sim: Sim) -> None:
    """Beside a healthy proxy nothing is wrong, and what is printed holds no token and no key."""
    home.write_store(provider_store(shared_sim.login()))
    env = environment(home, shared_sim, PROXY_API_KEY=KEY)
    with proxy_running(home, shared_sim, PROXY_API_KEY=KEY):
        code, findings = examine(env, "--online")
        shown = run(env, "doctor", "--online")
    assert code == 0
    assert {name for name, finding in findings.items() if finding["state"] == "note"} <= {"hermes", "service"}
    assert {"python", "install", "settings", "hermes-store", "state", "privacy", "lock", "grant"} < set(
        findings
    )
    assert {"auth-server", "clock", "api", "online", "proxy", "port"} < set(findings)
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "✓ grant" in shown.stdout
    everything = shown.stdout + str(findings)
    tokens = home.read_store()["providers"]["xai-oauth"]["tokens"]
    secrets = (KEY, tokens["access_token"], tokens["refresh_token"])
    assert not any(secret in everything for secret in secrets)


def test_nothing_is_refreshed(home: Home, own_sim: Sim) -> None:
    """Without --online no token is sent, with it the access token once; the token endpoint is never asked."""
    home.write_store(provider_store(own_sim.login()))
    env = environment(home, own_sim)
    before = home.auth.read_bytes()
    for options, sent in (((), 0), (("--online",), 1)):
        own_sim.http.delete("/_sim/requests").raise_for_status()
        assert examine(env, *options)[0] == 0
        carried = [dict(request["headers"]).get("authorization") for request in own_sim.requests()]
        assert carried.count("bearer:known") == sent
        assert own_sim.counters()["token_requests"] == 0
    assert home.auth.read_bytes() == before


def test_no_login(home: Home, shared_sim: Sim) -> None:
    """Without a login the store is what is wrong, with the command that signs in."""
    assert "hermes auth add xai-oauth" in wrong(environment(home, shared_sim), "hermes-store")


def test_no_hermes(home: Home, shared_sim: Sim, tmp_path: Path) -> None:
    """A missing Hermes CLI is wrong where it is required, for a login of Hermes'; else it is a note."""
    home.write_store(provider_store(shared_sim.login()))
    env = environment(home, shared_sim, PATH=tmp_path, HERMES_CLI_REQUIRED="true")
    assert "pip install hermes-agent" in wrong(env, "hermes")
    own_login(home, shared_sim.login())
    assert examine(env)[1]["hermes"]["state"] == "note"


def test_silent_hermes(home: Home, shared_sim: Sim, tmp_path: Path) -> None:
    """A Hermes that tells its version and then hangs is not waited for."""
    home.write_store(provider_store(shared_sim.login()))
    program(tmp_path / "bin" / "hermes", "echo Hermes Agent v9; exec sleep 60")
    env = environment(home, shared_sim)
    env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
    finding = examine(env)[1]["hermes"]
    assert finding["state"] == "ok"
    assert "Hermes Agent v9" in finding["sentence"]


def program(path: Path, commands: str) -> None:
    """A shell script to be found on PATH."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)


def test_dead_grant(home: Home, own_sim: Sim) -> None:
    """A login with a verdict on it is wrong, without another question to the server."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim) as proxy:
        own_sim.http.post("/_sim/revoke").raise_for_status()
        assert proxy.http.get("/v1/models").status_code == 503
    asked = own_sim.counters()["token_requests"]
    assert "revoked or has expired" in wrong(environment(home, own_sim), "grant")
    assert own_sim.counters()["token_requests"] == asked


def test_dead_own_grant(home: Home, shared_sim: Sim) -> None:
    """That Hermes' login serves in place of a dead own one is wrong too: it is not what was asked for."""
    home.write_store(provider_store(shared_sim.login()))
    own_login(home, shared_sim.login(), dead="invalid_grant")
    assert "in place of the proxy's own" in wrong(environment(home, shared_sim), "grant")


def test_expired_token(home: Home, own_sim: Sim) -> None:
    """An expired access token is in order, because a refresh will do; it is not sent to the API."""
    home.write_store(provider_store(own_sim.login(access_lifetime=0.001)))
    code, findings = examine(environment(home, own_sim), "--online")
    assert code == 0
    assert "expired" in findings["grant"]["sentence"]
    assert findings["online"]["state"] == "note"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("entitlement", "HTTP 403, entitlement: This account may not use the API"),
        ("quota-429", "HTTP 429, quota: "),
        ("stale-401", "does not accept the access token"),
        ("cloudflare-html", "web page"),
    ],
)
def test_refused_online(home: Home, own_sim: Sim, kind: str, said: str) -> None:
    """--online says what the API's refusal means."""
    home.write_store(provider_store(own_sim.login()))
    own_sim.patch(reject_oauth=kind)
    assert said in wrong(environment(home, own_sim), "online", "--online")


def test_open_files(home: Home, shared_sim: Sim) -> None:
    """Each file with a secret that others can read is named with the command that closes it."""
    home.write_store(provider_store(shared_sim.login()))
    own_login(home, shared_sim.login())
    aside = home.state.with_name("auth_state.json.corrupt-1")
    home.state.touch()
    aside.touch()
    env = environment(home, shared_sim)
    login = home.state.with_name("login.json")
    for path, mode in ((home.auth, 0o640), (login, 0o604), (aside, 0o602)):
        for known in (home.auth, home.state, login, aside):
            known.chmod(0o600)
        path.chmod(mode)
        assert f"chmod 600 {path}" in wrong(env, "privacy")
    aside.chmod(0o600)
    home.auth.parent.chmod(0o777)
    assert f"chmod 700 {home.auth.parent}" in wrong(env, "privacy")


def test_export_left_behind(home: Home, shared_sim: Sim) -> None:
    """An exported login that lies in the home is named, however private it is."""
    home.write_store(provider_store(shared_sim.login()))
    export = home.path / "xai-oauth.json"
    export.touch(mode=0o600)
    assert f"rm {export}" in wrong(environment(home, shared_sim), "privacy")


def test_damaged_state(home: Home, shared_sim: Sim) -> None:
    """A damaged state file is named and left where it is."""
    home.write_store(provider_store(shared_sim.login()))
    home.state.parent.mkdir(parents=True, mode=0o700)
    home.state.write_text("{")
    assert f"{home.state} is damaged" in wrong(environment(home, shared_sim), "state")
    assert home.state.read_text() == "{"


def test_lock_held(home: Home, shared_sim: Sim) -> None:
    """A lock that somebody keeps is wrong, and whose it is is told where the system tells it."""
    home.write_store(provider_store(shared_sim.login()))
    with (home.auth.parent / "auth.lock").open("w") as lock:
        env = environment(home, shared_sim)
        assert examine(env)[1]["lock"]["state"] == "ok"
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = wrong(env, "lock")
        assert str(home.auth.parent / "auth.lock") in told
        if Path("/proc/locks").exists():
            assert f"process {os.getpid()} (" in told


@pytest.mark.parametrize(("seconds", "said"), [(3600, "is 1 h behind"), (-3600, "is 1 h ahead of")])
def test_clock(home: Home, shared_sim: Sim, seconds: int, said: str) -> None:
    """A clock that differs from the server's Date is wrong, and in which direction is told."""
    home.write_store(provider_store(shared_sim.login()))
    with canned() as server:
        # Later than meant by half a minute, so that a slow machine sees the same minute.
        date = datetime.now(UTC) + timedelta(seconds=seconds + (30 if seconds > 0 else -30))
        server.headers["date"] = format_datetime(date, usegmt=True)
        server.body = '{"issuer": "x"}'
        told = wrong(environment(home, shared_sim, XAI_OAUTH_ISSUER=server.url), "clock")
    assert said in told
    assert "time synchronisation" in told


def test_clock_without_date(home: Home, shared_sim: Sim) -> None:
    """Without a Date nothing is said of the clock."""
    with canned() as server:
        for date in ("", "yesterday"):
            server.headers["date"] = date
            server.body = '{"issuer": "x"}'
            findings = examine(environment(home, shared_sim, XAI_OAUTH_ISSUER=server.url))[1]
            assert findings["clock"]["state"] == "note"


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {"content-type": "text/html"}, "<html>Sign in to the airport's network</html>"),
        (302, {"location": "http://portal.example/"}, ""),
        (511, {}, "<!doctype html>"),
    ],
    ids=["html", "redirect", "511"],
)
def test_captive_portal(home: Home, shared_sim: Sim, status: int, headers: dict[str, str], body: str) -> None:
    """A web page in place of either server is called that, and its Date is not believed."""
    with canned() as portal:
        portal.status, portal.body = status, body
        portal.headers = {"date": "Sun, 06 Nov 1994 08:49:37 GMT", **headers}
        env = environment(home, shared_sim, XAI_OAUTH_ISSUER=portal.url, XAI_BASE_URL=f"{portal.url}/v1")
        assert "captive portal" in wrong(env, "auth-server")
        findings = examine(env)[1]
    assert findings["api"]["state"] == "wrong"
    assert findings["clock"]["state"] == "note"


def test_steps_of_a_connection(home: Home) -> None:
    """A name that is not found, and a server that is not there, are told apart."""
    env = environment(
        home,
        GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM="true",
        XAI_OAUTH_ISSUER=f"http://{'a' * 64}.localhost",  # longer than a label may be (RFC 1035 §2.3.4)
        XAI_BASE_URL=f"http://127.0.0.1:{closed_port()}/v1",
    )
    findings = examine(env)[1]
    assert findings["auth-server"]["sentence"].startswith("DNS: ")
    assert findings["api"]["sentence"].startswith("Connecting: ")
    assert findings["api"]["sentence"].endswith("(Connection refused).")
    assert findings["clock"]["state"] == "note"


def test_egress_proxy(home: Home) -> None:
    """An egress proxy that is not there, refuses, or cannot be used is named, without its login."""
    gone = f"127.0.0.1:{closed_port()}"
    env = environment(home, HTTPS_PROXY=f"http://me:canary@{gone}")
    told = wrong(env, "api")
    assert f"Egress proxy: {gone} does not answer" in told
    assert "HTTPS_PROXY" in told
    assert "canary" not in told
    with refusing_egress() as port:
        told = wrong(env | {"HTTPS_PROXY": f"http://me:canary@127.0.0.1:{port}"}, "auth-server")
    assert f"127.0.0.1:{port} refuses to connect to auth.x.ai" in told
    assert "is not an http:// or socks5:// address" in wrong(env | {"HTTPS_PROXY": "ftp://x"}, "api")


@contextmanager
def refusing_egress() -> Iterator[int]:
    """The port of an HTTP proxy that wants another login."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_silence_ends_in_time(home: Home, shared_sim: Sim) -> None:
    """Servers that take a connection and say nothing, and a check that hangs, are given up together."""
    home.state.parent.mkdir(parents=True, mode=0o700)
    certificate = home.path / "certificate.pem"
    os.mkfifo(certificate)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        env = environment(
            home,
            shared_sim,
            XAI_OAUTH_ISSUER=f"https://127.0.0.1:{port}",
            XAI_BASE_URL=f"http://127.0.0.1:{port}/v1",
            PROXY_TLS_CERT=certificate,
            PROXY_TLS_KEY=certificate,
        )
        home.state.with_name("address").write_text(f"https://127.0.0.1:{port}\n")
        began = time.monotonic()
        findings = examine(env)[1]
        took = time.monotonic() - began
    assert took < 14  # eight, and the time a busy machine takes to start a program
    assert findings["proxy"]["sentence"] == "This check did not end in time."
    assert findings["auth-server"]["sentence"].startswith("TLS: the handshake with 127.0.0.1 failed")
    assert findings["api"]["sentence"] == "HTTP: 127.0.0.1 gave no answer in time."


@pytest.mark.parametrize("case", ["unknown", "expired", "name", "trusted"])
def test_certificates(home: Home, shared_sim: Sim, tmp_path: Path, case: str) -> None:
    """Of a certificate that is not accepted the reason is told, and what to do about that one."""
    authority = trustme.CA()
    past = datetime.now(UTC) - timedelta(days=1)
    host = "localhost" if case == "name" else "127.0.0.1"
    issued = authority.issue_cert(host, not_after=past if case == "expired" else None)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(tls)
    known = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(known))
    with canned(tls) as server:
        env = environment(home, shared_sim, XAI_BASE_URL=f"{server.url}/v1")
        if case != "unknown":
            env["SSL_CERT_FILE"] = str(known)
        if case == "trusted":
            finding = examine(env)[1]["api"]
            assert finding["state"] == "ok"
            assert "DNS, TLS and HTTP work" in finding["sentence"]
            return
        told = wrong(env, "api")
    assert told.startswith("TLS: the certificate of 127.0.0.1 is not accepted")
    assert {"unknown": "SSL_CERT_FILE", "expired": "date and time", "name": "captive portal"}[case] in told


def test_port(home: Home, shared_sim: Sim) -> None:
    """The port is free, another program's, or that of a proxy with another state folder."""
    port = closed_port()
    env = environment(home, shared_sim, PROXY_PORT=port)
    finding = examine(env)[1]["port"]
    assert (finding["state"], "is free" in finding["sentence"]) == ("ok", True)
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.listen()
        told = wrong(env, "port")
        assert f"Port {port} is in use by " in told
        if Path("/proc/net/tcp").exists():
            assert f"process {os.getpid()} (" in told


def test_port_of_another_proxy(home: Home, shared_sim: Sim) -> None:
    """A proxy with another state folder on the port is no fault, and is told."""
    with canned() as other:
        other.report()
        port = other.url.rpartition(":")[2]
        finding = examine(environment(home, shared_sim, PROXY_PORT=port))[1]["port"]
    assert finding["state"] == "note"
    assert "not the one noted in this state folder" in finding["sentence"]


@pytest.mark.parametrize(
    ("properties", "state", "said"),
    [
        ("LoadState=loaded|ActiveState=active|UnitFileState=enabled", "ok", "running and starts by itself"),
        ("LoadState=loaded|ActiveState=active|UnitFileState=disabled", "note", "does not start by itself"),
        ("LoadState=loaded|ActiveState=inactive|UnitFileState=enabled", "note", "not running (inactive)"),
        ("LoadState=loaded|ActiveState=failed|UnitFileState=enabled", "wrong", "has failed"),
        ("LoadState=not-found|ActiveState=inactive|UnitFileState=", "note", "not installed as a service"),
        ("LoadState=bad-setting|ActiveState=inactive|UnitFileState=", "wrong", "not loaded (bad-setting)"),
        ("LoadState=loaded|ExecStart={ path=/nowhere/grok ; argv[]=x }", "wrong", "/nowhere/grok"),
        ("LoadState=loaded|ExecStart={ path=/no where/g ; argv[]=x }", "wrong", "/no where/g,"),
        ("", "note", "Not applicable"),
    ],
)
def test_service(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, properties: str, state: str, said: str
) -> None:
    """What systemd tells of the unit is told in plain words."""
    lines = properties.replace("|", "\n")
    program(tmp_path / "bin" / "systemctl", f"cat <<'END'\n{lines}\nEND")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home.path))
    (finding,) = check_service()
    assert (finding.state, said in finding.sentence) == (state, True)


def test_port_that_systemd_holds(home: Home, shared_sim: Sim, tmp_path: Path) -> None:
    """A port that systemd holds for the proxy is no fault, and is not asked: that would start the proxy."""
    program(tmp_path / "bin" / "systemctl", 'case "$*" in *is-active*.socket) echo active ;; esac')
    with socket.create_server(("127.0.0.1", 0)) as held:
        env = environment(home, shared_sim, PROXY_PORT=held.getsockname()[1])
        env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
        findings = examine(env)[1]
        held.setblocking(False)
        with pytest.raises(BlockingIOError):
            held.accept()
    assert findings["proxy"]["state"] == "note"
    assert "systemd holds its port" in findings["proxy"]["sentence"]
    assert "port" not in findings


def test_hangs_on_a_port_that_systemd_holds(home: Home, shared_sim: Sim, tmp_path: Path) -> None:
    """A proxy that was started by such a port and does not answer is told, and is no note."""
    program(tmp_path / "bin" / "systemctl", 'case "$*" in *is-active*.socket) echo active ;; esac')
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        env = environment(home, shared_sim, PROXY_PORT=port)
        env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
        home.state.parent.mkdir(mode=0o700, parents=True)
        home.state.with_name("address").write_text(f"http://127.0.0.1:{port}\n")
        assert "gives no answer" in wrong(env, "proxy")


def test_no_systemd(home: Home, shared_sim: Sim, tmp_path: Path) -> None:
    """Where there is no systemd, or it hangs, the service is not applicable."""
    assert "Not applicable" in examine(environment(home, PATH=tmp_path))[1]["service"]["sentence"]
    program(tmp_path / "bin" / "systemctl", "exec sleep 60")
    env = environment(home, shared_sim)
    env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
    assert "Not applicable" in examine(env)[1]["service"]["sentence"]


@pytest.mark.parametrize(
    ("fields", "state", "said"),
    [
        ({"version": __version__}, "ok", "It runs and is ok."),
        ({"version": "0.0.1"}, "note", "Version 0.0.1 runs"),
        ({"version": __version__, "status": "degraded", "problem": {"message": "So. Do."}}, "note", "So."),
        ({"status": "unauthenticated", "problem": {"message": "Dead. Sign in."}}, "wrong", "Dead."),
        ({"status": "unavailable", "problem": "odd"}, "wrong", "does not say why"),
    ],
)
def test_running_proxy(home: Home, shared_sim: Sim, fields: Json, state: str, said: str) -> None:
    """Of a running proxy is told how it is, and whether it is older than what is installed."""
    with canned() as proxy:
        proxy.pose_as_running(home)
        proxy.report(**fields)
        finding = examine(environment(home, shared_sim))[1]["proxy"]
    assert finding["state"] == state
    assert said in finding["sentence"]


def test_bad_setting(home: Home) -> None:
    """A bad setting is a finding with its fix, and what needs no setting is checked all the same."""
    env = environment(home, PROXY_PORT="many")
    assert "PROXY_PORT has a bad value" in wrong(env, "settings")
    findings = examine(env)[1]
    assert findings["python"]["state"] == "ok"
    assert findings["others"]["state"] == "note"


@pytest.mark.parametrize(
    ("version", "more", "said"),
    [
        ("9.9", "", "its installation of 9.9"),
        (__version__, "Requires-Dist: nothing-of-this-name>=1\n", "nothing-of-this-name"),
        (__version__, "RECORD", "grok_oauth_proxy/gone.py"),
    ],
    ids=["half-upgraded", "dependency", "file"],
)
def test_broken_installation(home: Home, tmp_path: Path, version: str, more: str, said: str) -> None:
    """An installation that is not whole is told with the command that repairs it."""
    info = tmp_path / "site" / "grok_oauth_proxy-0.0.dist-info"
    info.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: grok-oauth-proxy\nVersion: {version}\n"
    (info / "METADATA").write_text(head + (more if more.startswith("Requires") else ""))
    (info / "RECORD").write_text("grok_oauth_proxy/gone.py,,\n" if more == "RECORD" else "")
    told = wrong(environment(home, PYTHONPATH=tmp_path / "site"), "install")
    assert said in told
    assert "./install.sh" in told


def test_keys(home: Home) -> None:
    """The file of clients' keys is there, whole and not empty, or the way out is told."""
    path = home.path / "keys.json"
    named = Settings(hermes_home=home.path, proxy_api_keys_file=path)
    entry = {"name": "app", "sha256": "ab" * 32, "added_at": "2026-07-20T12:00:00Z"}

    def state(settings: Settings, *keys: object) -> tuple[str, str]:
        path.write_text(json.dumps({"version": 1, "keys": keys}))
        (found,) = check_keys(settings)
        return found.state, f"{found.sentence} {found.fix}"

    (missing,) = check_keys(named)
    assert (missing.state, "does not exist" in missing.sentence) == ("wrong", True)
    (none,) = check_keys(Settings(grok_proxy_auth_state=home.path / "empty" / "auth_state.json"))
    assert none.state == "ok"
    assert state(named, entry) == ("ok", f"{path} has 1 key. None")
    for keys, said in (((), "everybody is refused"), (({},), "is damaged")):
        found, told = state(named, *keys)
        assert found == "wrong"
        assert said in told
        assert "keys add NAME" in told
    assert state(named.model_copy(update={"proxy_api_key": SecretStr("x")}))[0] == "ok"
