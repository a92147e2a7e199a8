"""install.sh, in a copy of the tree: it sets everything up, can be run again, and fails in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.credentials.users import as_root
from tests.sim.harness import Sim, claims

ROOT = Path(__file__).parent.parent
NEEDED = ("install.sh", "pyproject.toml", "README.md", "LICENSE", "requirements.lock", "scripts", "src")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What install.sh needs of the tree, with nothing that was made here."""
    return copied(tmp_path_factory.mktemp("whole"))


def copied(folder: Path) -> Path:
    for name in NEEDED:
        source, target = ROOT / name, folder / "tree" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, target)
    return folder / "tree"


def install(
    tree: Path, *arguments: str, path: str = os.environ["PATH"], **settings: str
) -> subprocess.CompletedProcess[str]:
    # The rest of the environment says how packages are reached, which is not the proxy's affair.
    env = dict(os.environ) | {"PATH": path, "HOME": str(tree)} | settings
    env.pop("PYTHON", None)
    return subprocess.run(
        ["/bin/bash", "install.sh", *arguments],
        cwd=tree,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_install(tree: Path) -> None:
    """It installs a command that works, and prints the next step."""
    ended = install(tree)
    assert ended.returncode == 0, ended.stderr
    assert "hermes auth add xai-oauth" in ended.stdout
    command = tree / ".venv/bin/grok-oauth-proxy"
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("grok-oauth-proxy, version")


def test_headless(tree: Path, own_sim: Sim) -> None:
    """On a server: without a login it says the next step; with an exported one all is in order."""
    tools = tree / "bin"
    tools.mkdir()
    (tools / "systemctl").write_text("#!/bin/sh\necho LoadState=loaded; echo ActiveState=active\n")
    (tools / "systemctl").chmod(0o755)
    settings = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "GROK_PROXY_ALLOW_LOOPBACK_UPSTREAM": "true",
        "XAI_BASE_URL": f"{own_sim.url}/v1",
        "XAI_OAUTH_ISSUER": own_sim.url,
        "PROXY_PORT": "0",
    }
    ended = install(tree, "--headless", **settings)
    assert ended.returncode == 1
    wrong = [line for line in ended.stdout.splitlines() if line.startswith("✗")]
    assert any("grok-oauth-proxy login" in line for line in wrong)
    assert all(" → " in line for line in wrong)
    assert "No xai-oauth.json lies beside install.sh" in ended.stdout
    assert "To start it" not in ended.stdout  # nobody is signed in

    tokens = own_sim.login()
    document = {
        "version": 1,
        "provider": "xai-oauth",
        "client_id": claims(tokens["access_token"])["client_id"],
        "token_endpoint": f"{own_sim.url}/oauth2/token",
        "tokens": {name: value for name, value in tokens.items() if name != "scope"},
    }
    export = tree / "xai-oauth.json"
    export.touch(mode=0o600)
    export.write_text(json.dumps(document))
    ended = install(tree, "--headless", "--enable-service", **settings)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "none wrong" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("Confirmation code: ")
    assert tokens["refresh_token"] not in ended.stdout
    assert not export.exists()
    assert (tree / ".local/state/grok-oauth-proxy/login.json").exists()
    assert (tree / ".config/systemd/user/grok-oauth-proxy.service").exists()


@pytest.mark.parametrize("kind", ["link", "folder", "dangling"])
def test_not_an_export(tmp_path: Path, kind: str) -> None:
    """What lies in the place of an export and is none is neither imported nor removed, and it is named."""
    place = tmp_path / "xai-oauth.json"
    if kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path if kind == "link" else "nowhere")
    text = (ROOT / "install.sh").read_text()
    function = text[text.index("import_export()") : text.index("# check_all")]
    run_it = f"started_in=$PWD; program=false; {function} import_export"
    ended = subprocess.run(
        ["/bin/bash", "-c", run_it], cwd=tmp_path, env={"HOME": "/"}, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert f"{place} is not a file of its own" in ended.stdout
    assert os.path.lexists(place)


def test_install_without_python(tmp_path: Path) -> None:
    """Without Python 3.11 it ends with one line that says what to install, and makes nothing."""
    tree = copied(tmp_path)
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("dirname", "rm"):
        (bare / tool).symlink_to(shutil.which(tool) or tool)
    old = bare / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    ended = install(tree, path=str(bare))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "Python 3.11 or newer is needed" in ended.stderr
    assert not (tree / ".venv").exists()


@as_root
def test_headless_behind_sudo(tmp_path: Path) -> None:
    """Nothing is made and no login is taken over: they would be root's, and the service is refused anyway."""
    tree = copied(tmp_path)
    (tree / "xai-oauth.json").touch()
    ended = install(tree, "--headless", "--enable-service", SUDO_USER="somebody")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "without sudo" in ended.stderr
    assert not (tree / ".venv").exists()
    assert (tree / "xai-oauth.json").exists()


def test_install_unknown_option(tree: Path) -> None:
    """An option it does not know is named, with the ones it does."""
    ended = install(tree, "--dmeo")
    assert ended.returncode == 2
    assert ended.stderr.startswith("Unknown option: --dmeo. Use ./install.sh, ./install.sh --demo or ")
    assert install(tree, "--enable-service").returncode == 2
