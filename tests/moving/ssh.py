"""A real sshd on loopback, run as the current user, and what leads the real ssh to it.

Its sessions have the other side's home. The ssh on PATH is the real one with a configuration of its own,
because ssh looks for the user's at the place that the password entry names.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import PATIENCE, Output, ending
from tests.moving.side import Side

SSHD = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Server:
    """A side that ssh reaches under the name `server`."""

    side: Side
    key: Path
    bin: Path
    """What the server's PATH begins with."""
    client: Path
    """A folder with the ssh that knows the way, for a PATH; `arguments` and `pid` tell of its runs."""
    log: Output

    def arguments(self) -> str:
        return (self.client / "arguments").read_text()


@contextmanager
def serving(side: Side, folder: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """sshd, listening; `environment` is what its sessions get beside HOME and PATH."""
    if SSHD is None or not shutil.which("ssh"):
        pytest.fail("sshd and ssh are needed: apt install openssh-server openssh-client", pytrace=False)
    folder.mkdir()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # a service's start makes it, else nobody does
    for name in ("host_key", "key"):
        _keygen(folder / name)
    (folder / "authorized_keys").write_text((folder / "key.pub").read_text())
    remote_bin, client = folder / "remote-bin", folder / "client-bin"
    remote_bin.mkdir()
    client.mkdir()
    (remote_bin / "python3").symlink_to(sys.executable)
    session = {"HOME": str(side.home.path), "PATH": f"{remote_bin}:/usr/bin:/bin", **environment}
    (folder / "sshd_config").write_text(
        "\n".join(
            [
                "ListenAddress 127.0.0.1",
                f"HostKey {folder / 'host_key'}",
                f"AuthorizedKeysFile {folder / 'authorized_keys'}",
                "PidFile none",
                "StrictModes no",
                "UsePAM no",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "PermitRootLogin prohibit-password",
                "SetEnv " + " ".join(f'"{name}={value}"' for name, value in session.items()),
            ]
        )
    )
    with _listening(folder / "sshd_config") as (port, log):
        _write_client(client, folder, port)
        yield Server(side, folder / "key", remote_bin, client, log)


@contextmanager
def _listening(config: Path) -> Iterator[tuple[int, Output]]:
    """sshd can't be asked for any free port: another one is tried when somebody was faster."""
    while True:
        port = _free_port()
        command = [str(SSHD), "-D", "-e", "-f", str(config), "-p", str(port)]
        with ending(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process:
            log = Output(process.stderr)
            if log.wait_for("Server listening on|Cannot bind any address")[0].startswith("Server"):
                yield port, log
                return


def _write_client(client: Path, folder: Path, port: int) -> None:
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    (folder / "ssh_config").write_text(
        f"""Host server
  HostName 127.0.0.1
  Port {port}
  User {getpass.getuser()}
  UserKnownHostsFile {folder / "known_hosts"}
  IdentitiesOnly yes
Host *
  BatchMode yes
  StrictHostKeyChecking yes
"""
    )
    script = client / "ssh"
    script.write_text(
        f"""#!/bin/sh
printf '%s\\n' "$@" >> '{client / "arguments"}'
echo $$ > '{client / "pid"}'
exec {shutil.which("ssh")} -F '{folder / "ssh_config"}' "$@"
"""
    )
    script.chmod(0o755)


def _keygen(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, timeout=PATIENCE)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
