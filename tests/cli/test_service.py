"""`service`: the real systemd-analyze and plistlib accept what it writes, and it removes that and no more.

A program in the manager's place notes what it is asked.
"""

from __future__ import annotations

import os
import plistlib
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from grok_oauth_proxy.cli.service.managers import refuse_twin
from grok_oauth_proxy.cli.service.person import Person, behind_sudo
from grok_oauth_proxy.cli.service.systemd import Systemd
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.settings_file import read_settings_file
from tests.credentials.users import as_root
from tests.harness import UNPRIVILEGED, Home, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim

UNIT = ".config/systemd/user/grok-oauth-proxy.service"
SOCKET = ".config/systemd/user/grok-oauth-proxy.socket"
SETTINGS = ".config/grok-oauth-proxy.env"
FOR_DAEMON = ("service", "install", "--system", "--user", "daemon", "--dry-run")
AGENT = "Library/LaunchAgents/local.grok-oauth-proxy.plist"
KEY = "canary-of-the-proxy-key"
MANAGER = """#!/bin/sh
echo "$@" >> "$HOME/asked"
case "$*" in
    *" show "*) echo ActiveState=inactive ;;
    *is-active*) exit 3 ;;
    *restart*service) exit "${RESTART:-0}" ;;
    bootstrap*) touch "$HOME/loaded" ;;
    bootout*) rm "$HOME/loaded"; exit 36 ;; # "operation now in progress"
    "print gui/"*/*) [ -e "$HOME/loaded" ] && echo "	state = running" && echo "	pid = 7" ;;
    print*) echo domain ;;
esac
"""


def files_of(home: Home) -> set[str]:
    return {str(path.relative_to(home.path)) for path in home.path.rglob("*") if path.is_file()}


def written(dry_run: str) -> dict[Path, str]:
    """The files that `--dry-run` prints."""
    found: dict[Path, str] = {}
    path = None
    for line in dry_run.splitlines():
        if line.startswith("This is written to "):
            path = Path(line.removeprefix("This is written to ").rstrip(":"))
            found[path] = ""
        elif path and (line.startswith("    ") or not line):
            found[path] += line.removeprefix("    ") + "\n"
        else:
            path = None
    return found


def managed(home: Home, name: str, **settings: str) -> dict[str, str]:
    """An environment with a manager that notes in ~/asked what it is asked."""
    folder = home.path / "bin"
    folder.mkdir(exist_ok=True)
    for command in (name, "loginctl"):
        (folder / command).write_text(MANAGER)
        (folder / command).chmod(0o755)
    env = environment(home) | settings
    return env | {"PATH": f"{folder}:{env['PATH']}"}


def asked(home: Home) -> list[str]:
    """What it was asked to change."""
    lines = (home.path / "asked").read_text().splitlines()
    return [line for line in lines if " show " not in line and not line.startswith("print")]


def values(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


@pytest.mark.parametrize("system", [False, True], ids=["user", "system"])
def test_units_pass_the_real_systemd(home: Home, tmp_path: Path, system: bool) -> None:
    """systemd-analyze finds no fault, with odd characters in the paths, and rates the service below 2."""
    odd = home.path / "a b%h"
    env = environment(home, HERMES_HOME=odd / "hermes", PROXY_UDS=odd / "run/sock", PROXY_PORT=9996)
    options = ["--system", "--user", "daemon"] if system else []
    ended = run(env | {"PROXY_API_KEY": KEY}, "service", "install", "--dry-run", "--socket", *options)
    assert ended.returncode == 0, ended.stderr
    assert KEY not in ended.stdout
    units = written(ended.stdout)
    assert {path.name for path in units} == {"grok-oauth-proxy.service", "grok-oauth-proxy.socket"}
    folder = tmp_path / "units"
    folder.mkdir()
    for path, text in units.items():
        (folder / path.name).write_text(text)
    scope = "--system" if system else "--user"
    unit = folder / "grok-oauth-proxy.service"
    verify = [
        "systemd-analyze",
        scope,
        "verify",
        "--man=no",
        str(unit),
        str(folder / "grok-oauth-proxy.socket"),
    ]
    checked = subprocess.run(
        verify, env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    rate = ["systemd-analyze", "security", "--offline=true", "--threshold=19", str(unit)]
    rated = subprocess.run(rate, capture_output=True, text=True)
    assert rated.returncode == 0, rated.stdout[-500:]

    service, socket = unit.read_text(), (folder / "grok-oauth-proxy.socket").read_text()
    own_home = "/usr/sbin" if system else str(home.path)
    shown = str(odd).replace("%", "%%")
    assert values(service, "ReadWritePaths") == [
        f'-{own_home}/.local/state/grok-oauth-proxy "-{shown}/hermes" "-{shown}/run"'
    ]
    assert values(service, "User") == (["daemon"] if system else [])
    assert values(service, "WantedBy") == ["multi-user.target" if system else "default.target"]
    assert values(service, "StateDirectory") == ([] if system else ["grok-oauth-proxy"])
    assert values(socket, "ListenStream") == ["127.0.0.1:9996", f"{shown}/run/sock"]
    assert values(socket, "SocketUser") == (["daemon"] if system else [])
    assert values(socket, "RemoveOnStop") == ["yes"]  # the socket's file goes with the unit


def test_install_and_uninstall(home: Home) -> None:
    """Install writes, enables and starts; again without --socket it removes that; uninstall removes all."""
    env = managed(home, "systemctl", PROXY_PORT="9996", PROXY_API_KEY=KEY)
    (home.path / SETTINGS).parent.mkdir()
    (home.path / SETTINGS).touch(mode=0o600)
    (home.path / SETTINGS).write_text("LOG_LEVEL=debug\nPROXY_PORT=1")
    (home.path / UNIT).parent.mkdir(parents=True)
    (home.path / UNIT).with_name("other.service").write_text("of somebody else")
    before = files_of(home)

    dry = run(env, "service", "install", "--socket", "--dry-run")
    assert (dry.returncode, files_of(home) - {"asked"}) == (0, before)
    assert "refused" not in dry.stderr
    ended = run(env, "service", "install", "--socket")
    assert ended.returncode == 0, ended.stderr
    assert files_of(home) - before == {UNIT, SOCKET, "asked"}
    assert (home.path / UNIT).read_text().strip() == written(dry.stdout)[home.path / UNIT].strip()
    assert stat.S_IMODE((home.path / UNIT).stat().st_mode) == 0o644
    lines = (home.path / SETTINGS).read_text().splitlines()
    assert (lines[0], [line for line in lines if "PORT" in line]) == ("LOG_LEVEL=debug", ["PROXY_PORT=9996"])
    assert stat.S_IMODE((home.path / SETTINGS).stat().st_mode) == 0o600
    assert read_settings_file(home.path / SETTINGS) == {
        "LOG_LEVEL": "debug",
        "PROXY_PORT": "9996",
        "PROXY_API_KEY": KEY,
        "HERMES_CLI_REQUIRED": "false",
    }
    assert KEY not in ended.stdout + ended.stderr + (home.path / UNIT).read_text()
    assert stat.S_IMODE(home.state.parent.stat().st_mode) == 0o700
    told = [line.strip() for line in dry.stdout.split("Then these are run:\n")[1].splitlines()]
    assert [f"systemctl {line}" for line in asked(home) if line.startswith("--user")] == told[:5]
    assert "service uninstall" in told[-1]
    assert "grok-oauth-proxy.socket is stopped" in run(env, "service", "status").stdout

    (home.path / "asked").unlink()
    dry = run(env, "service", "install", "--dry-run")
    assert f"This is removed, an earlier install wrote it: {home.path / SOCKET}" in dry.stdout
    assert asked(home) == []
    ended = run(env, "service", "install")
    assert ended.returncode == 0, ended.stderr
    assert "is added, to stay" not in ended.stdout  # it is there by now
    assert not (home.path / SOCKET).exists()
    told = [line.strip() for line in dry.stdout.split("Then these are run:\n")[1].splitlines()]
    assert [f"systemctl {line}" for line in asked(home) if line.startswith("--user")] == told[:4]
    ended = run(env, "service", "uninstall")
    assert ended.returncode == 0, ended.stderr
    assert asked(home)[-2:] == ["--user disable --now grok-oauth-proxy.service", "--user daemon-reload"]
    (home.path / "asked").unlink()
    assert files_of(home) == before
    ended = run(env, "service", "uninstall")
    assert (ended.returncode, ended.stdout) == (0, "No service of grok-oauth-proxy is installed here.\n")


def test_launchd_with_an_odd_home(tmp_path: Path) -> None:
    """The agent is read by plistlib whatever the home is called: two hyphens would end its comment."""
    odd = Home(tmp_path)
    odd.path = tmp_path / "a--b & <c>"
    odd.path.mkdir()
    assert run(managed(odd, "launchctl"), "service", "install", "--platform", "launchd").returncode == 0
    agent = plistlib.loads((odd.path / AGENT).read_bytes())
    assert agent["StandardErrorPath"].startswith(str(odd.path))


def test_paths_of_this_folder(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that begins in the folder of the shell is absolute in the settings file, as in the unit."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    env = managed(home, "systemctl", HERMES_HOME="hermes", PROXY_API_KEYS_FILE="~/keys.json")
    assert run(env, "service", "install").returncode == 0
    carried = read_settings_file(home.path / SETTINGS)
    assert carried["HERMES_HOME"] == str(folder / "hermes")
    assert carried["PROXY_API_KEYS_FILE"] == "~/keys.json"
    assert carried["HERMES_HOME"] in (home.path / UNIT).read_text()


def test_files_that_a_service_does_not_see(home: Home) -> None:
    """A certificate in /tmp is named, since the service has a /tmp of its own."""
    where = {"HERMES_HOME": "/srv/h", "GROK_PROXY_AUTH_STATE": "/srv/s/state.json"}
    unseen = "/dev/shm/cert.pem"  # noqa: S108 - nothing is made there
    tls = {"PROXY_TLS_CERT": unseen, "PROXY_TLS_KEY": "/srv/key.pem"}
    code = (
        "from grok_oauth_proxy.cli.service.places import Places, find_places, hidden\n"
        "from grok_oauth_proxy.settings import load_settings\n"
        "from dataclasses import replace\n"
        "places = replace(find_places(load_settings()), program=('/srv/bin',))\n"
        "print(hidden(places))"
    )
    for settings, named in ((where, None), (where | tls, unseen)):
        told = subprocess.run(
            [sys.executable, "-c", code], env=environment(home) | settings, capture_output=True, text=True
        )
        assert told.stdout.strip() == str(named), told.stderr


def test_a_start_that_fails(home: Home) -> None:
    """A start that fails ends with exit code 1 and the next step; afterwards every command that finds no
    proxy names how to start the service, and not `serve`.
    """
    env = managed(home, "systemctl", RESTART="1")
    ended = run(env, "service", "install")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith("then run this again.")
    assert "did not start" in ended.stderr
    ended = run(env, "service", "status")
    assert ended.returncode == 1
    assert ended.stdout.startswith("systemd --user: inactive, does not start by itself")
    start = "systemctl --user restart grok-oauth-proxy.service"
    assert ended.stdout.count("tart it with") == 1
    for told in (ended.stdout, run(env, "status").stdout, run(env, "doctor").stdout):
        assert f"`{start}`" in " ".join(told.split())
        assert "grok-oauth-proxy serve" not in told


def test_what_is_refused(home: Home, tmp_path: Path) -> None:
    """A unit that it did not write is kept; where no systemd runs it says so and writes nothing."""
    unit = home.path / UNIT
    env = environment(home, PATH=tmp_path)  # where no systemctl is
    for command, said in (
        (["install"], "systemd does not run here"),
        (["status"], "No service is installed here"),
        (["logs"], "No service is installed here"),
        (["install", "--user", "me"], "--user goes with --system"),
        (["install", "--system", "--user", "no-such-user"], "no user 'no-such-user'"),
        (["install", "--platform", "launchd", "--socket"], "--socket is for systemd"),
    ):
        ended = run(env, "service", *command)
        assert ended.returncode == (2 if said.startswith(("--", "no user")) else 1), ended.stderr
        assert said in ended.stderr
        assert "Traceback" not in ended.stderr
        assert not unit.exists()
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    ended = run(managed(home, "systemctl"), "service", "install")
    assert ended.returncode == 1
    assert f"{unit} was not written by" in ended.stderr
    assert unit.read_text() == "[Service]\nExecStart=/bin/true\n"


def test_sudo_finds_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where root is needed the whole command is named, since sudo does not search the user's PATH."""
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["grok-oauth-proxy", "service", "install", "--system", "--socket"])
    program = Path(sys.executable).with_name("grok-oauth-proxy")
    with pytest.raises(ProxyError, match=f"`sudo {program} service install --system --socket`"):
        behind_sudo(None, dry_run=False)


def test_twin_of_another(tmp_path: Path) -> None:
    """Where somebody has the service already, it is said who has to remove it first."""
    someone = Person("someone", 4711, 4711, tmp_path)
    own = Systemd(someone)
    own.service_file.parent.mkdir(parents=True)
    own.service_file.touch()
    with pytest.raises(ProxyError, match=r"First run, as someone, `\S+ service uninstall`\.$"):
        refuse_twin(Systemd(someone, for_system=True))


@as_root
def test_program_out_of_reach(tmp_path: Path) -> None:
    """An account that may not enter the folder of the program is told so, before anything is written."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    python = folder / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    command = [str(python), "-m", "grok_oauth_proxy", *FOR_DAEMON]
    env = {"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"{folder}/grok-oauth-proxy is out of reach for that user" in ended.stderr


@as_root
def test_nobody_at_home() -> None:
    """An account without a name and a home, as in a container, is told in one line to set HOME."""
    code = (
        "import os; from grok_oauth_proxy.cli.service.person import myself, ProxyError\n"
        "os.environ.pop('HOME', None); os.setuid(4711)\n"
        "try: myself()\n"
        "except ProxyError as error: print(error.message)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("No home directory is known. Set HOME.\n", "")


@as_root
def test_groups_of_the_account() -> None:
    """What root looks at for an account it sees with that account's groups, and has its own back after it."""
    code = (
        "import os, pwd; from grok_oauth_proxy.cli.service.person import Person, living_as\n"
        "os.setgroups([0, 4711])\n"
        "entry = pwd.getpwnam('daemon')\n"
        "with living_as(Person('daemon', entry.pw_uid, entry.pw_gid, '/')):\n"
        "    assert os.getgroups() == sorted(os.getgrouplist('daemon', entry.pw_gid)), os.getgroups()\n"
        "    assert os.geteuid() == entry.pw_uid\n"
        "assert (os.getgroups(), os.geteuid()) == ([0, 4711], 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@as_root
def test_root_that_may_nothing(home: Home) -> None:
    """Root without capabilities, as in a container, is told that it cannot act for another account."""
    ended = run(environment(home), *FOR_DAEMON, by=UNPRIVILEGED)
    assert ended.returncode == 1
    assert "This root may not act as daemon." in ended.stderr


@pytest.mark.parametrize("name", ["sock\nSocketMode=0666", "sock\\"], ids=["line", "backslash"])
def test_path_that_would_be_another_line(home: Home, name: str) -> None:
    """No setting adds a line to a unit, or swallows the next one."""
    env = environment(home, PROXY_PORT=9996, PROXY_UDS=home.path / name)
    ended = run(env, "service", "install", "--dry-run", "--socket")
    assert ended.returncode != 0
    assert ended.stdout == ""


def test_socket_that_others_could_replace(home: Home) -> None:
    """Where the socket would lie is looked at as the proxy itself would; what is refused is not installed."""
    theirs = home.path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    env = managed(home, "systemctl", PROXY_UDS=str(theirs / "sock"), PROXY_TCP="false")
    ended = run(env, "service", "install", "--socket")
    assert ended.returncode == 3
    assert f"others can write to {theirs}" in ended.stderr
    assert ended.stdout == ""
    ended = run(env, "service", "install", "--socket", "--dry-run")
    assert ended.returncode == 0
    assert f"would be refused: Cannot listen on PROXY_UDS {theirs}" in ended.stderr
    assert run(env, "service", "install").returncode == 3  # the proxy itself would refuse it
    assert not (home.path / UNIT).exists()
    env["PROXY_UDS"] = str(home.path / ".local/state/grok-oauth-proxy/sock")  # its folder is made on the way
    assert run(env, "service", "install", "--socket").returncode == 0


def test_beside_a_proxy(home: Home, shared_sim: Sim) -> None:
    """While a proxy runs by hand the service would get another port, so it is refused with its address."""
    home.write_store(provider_store(shared_sim.login()))
    with proxy_running(home, shared_sim) as proxy:
        ended = run(managed(home, "systemctl"), "service", "install")
    assert ended.returncode == 1
    assert f"answers at {proxy.url}" in ended.stderr
    assert not (home.path / UNIT).exists()


def test_launchd(home: Home) -> None:
    """The agent is valid, runs this install, and comes back after a failure only."""
    env = managed(home, "launchctl")
    ended = run(env, "service", "install", "--platform", "launchd")
    assert ended.returncode == 0, ended.stderr
    agent = plistlib.loads((home.path / AGENT).read_bytes())
    assert agent["ProgramArguments"][-1] == "serve"
    assert shutil.which(agent["ProgramArguments"][0]) is not None
    assert (agent["RunAtLoad"], agent["KeepAlive"]) == (True, {"SuccessfulExit": False})
    assert (agent["Umask"], agent["ThrottleInterval"], agent["ExitTimeOut"]) == (0o077, 60, 90)
    assert agent["StandardErrorPath"] == f"{home.path}/Library/Logs/grok-oauth-proxy.log"
    domain = f"gui/{os.getuid()}"
    label = f"{domain}/local.grok-oauth-proxy"
    begun = [f"enable {label}", f"bootstrap {domain} {home.path / AGENT}"]
    assert asked(home) == begun
    assert run(env, "service", "install", "--platform", "launchd").returncode == 0
    assert asked(home) == [*begun, f"bootout {label}", *begun]

    (home.path / "Library/Logs").mkdir()
    (home.path / "Library/Logs/grok-oauth-proxy.log").write_text("first\nlast\n")
    assert run(env, "service", "logs", "-n", "1").stdout == "last\n"
    assert run(env, "service", "status").stdout.startswith("launchd: state running, pid 7.")
    assert run(env, "service", "uninstall").returncode == 0
    assert not (home.path / AGENT).exists()
    assert asked(home)[-1] == f"bootout {label}"
