"""Machines of a cluster, on this one: each has network, processes, /tmp, /dev/shm and home of its own.

They share the rest of the file system, and so the repository, its environment, and a folder outside of /tmp. Making
them takes root.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rl.paths import REPOSITORY

_LETTERS = itertools.cycle("abcdefghijklmnopqrstuvwxyz")
IPV4, IPV6 = "10.77.0.", "fd77::"
PORT = 2222
READY_S = 30.0
ENTER = """
set -e
hostname "$1"; staging=$2; count=$3; shift 3
kept=("${@:1:count}"); shift "$count"
for path in "${kept[@]}"; do mkdir -p "$staging$path"; mount --rbind "$path" "$staging$path"; done
here=$PWD
for place in /tmp /dev/shm "$HOME"; do mount -t tmpfs tmpfs "$place"; done
for path in "${kept[@]}"; do mkdir -p "$path"; mount --rbind "$staging$path" "$path"; done
cd "$here"
exec "$@"
"""
SSHD = """
Port {port}
ListenAddress {address}
HostKey {folder}/host-key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
"""


@dataclass(frozen=True)
class Machine:
    """One of them: its number from 1, the folder that all share, and how the addresses of their network begin."""

    number: int
    prefix: str
    folder: Path
    network: str = IPV4

    @property
    def name(self) -> str:
        return f"{self.prefix}{self.number}"

    @property
    def address(self) -> str:
        return f"{self.network}{self.number}"

    def command(self, words: Sequence[str]) -> list[str]:
        """The command that runs another one there, with all that it starts in a process space of its own."""
        inside = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        staging, stay = str(self.folder / f"kept-{self.number}"), kept()
        enter = ["bash", "-c", ENTER, "enter", self.name, staging, str(len(stay)), *stay]
        return ["ip", "netns", "exec", self.name, *inside, *enter, *words]


def kept() -> list[str]:
    """What stays of /tmp and of the home: the repository, the environment and its Python, if they lie there."""
    needed = (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
    hidden = (Path("/tmp"), Path.home())
    return [str(path) for path in needed if any(path.is_relative_to(one) for one in hidden)]


@contextmanager
def machines(count: int, network: str = IPV4, *, serve: bool = True) -> Iterator[list[Machine]]:
    """So many machines on one network, without any other. If they serve, all but the first answer to ssh."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-cluster-", dir="/var/tmp"))
    prefix = f"sl{os.getpid() % 10000}{next(_LETTERS)}-"
    made = [Machine(number, prefix, folder, network) for number in range(1, count + 1)]
    servers: list[subprocess.Popen[bytes]] = []
    try:
        _wire(prefix, made)
        if serve:
            _keys(folder)
            servers = [_serve(machine) for machine in made[1:]]
        for machine, server in zip(made[1:], servers, strict=False):
            _await(made[0], machine, server)
        yield made
    finally:
        for server in servers:
            server.kill()
            server.wait()
        for machine in made:
            subprocess.run(["ip", "netns", "del", machine.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{prefix}br"], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def ssh_command(folder: Path) -> str:
    """What reaches the machines."""
    options = ("StrictHostKeyChecking=no", f"UserKnownHostsFile={folder}/known", f"IdentityFile={folder}/key")
    return shlex.join(["ssh", "-p", str(PORT), *(word for one in options for word in ("-o", one))])


def run_on(
    machine: Machine, words: Sequence[str], environment: Mapping[str, str], cwd: Path, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        machine.command(words),
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _wire(prefix: str, made: Sequence[Machine]) -> None:
    bridge = f"{prefix}br"
    _ip("link", "add", bridge, "type", "bridge")
    _ip("link", "set", bridge, "up")
    for machine in made:
        _ip("netns", "add", machine.name)
        outside = f"{prefix}v{machine.number}"
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
        _ip("link", "set", outside, "master", bridge, "up")
        prefix_length, *once = ("64", "nodad") if machine.network == IPV6 else ("24",)
        _ip("-n", machine.name, "addr", "add", f"{machine.address}/{prefix_length}", "dev", "eth0", *once)
        _ip("-n", machine.name, "link", "set", "eth0", "up")
        _ip("-n", machine.name, "link", "set", "lo", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _keys(folder: Path) -> None:
    for name in ("key", "host-key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)


def _serve(machine: Machine) -> subprocess.Popen[bytes]:
    config = machine.folder / f"sshd-{machine.number}"
    config.write_text(SSHD.format(port=PORT, address=machine.address, folder=machine.folder))
    os.makedirs("/run/sshd", exist_ok=True)
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    log = (machine.folder / f"sshd-{machine.number}.log").open("wb")
    return subprocess.Popen(machine.command([sshd, "-D", "-e", "-f", str(config)]), stdout=log, stderr=log)


def _await(first: Machine, machine: Machine, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_S
    asked = ["ip", "netns", "exec", first.name, *shlex.split(ssh_command(machine.folder)), machine.address, "true"]
    while (done := subprocess.run(asked, capture_output=True, text=True, stdin=subprocess.DEVNULL)).returncode != 0:
        log = (machine.folder / f"sshd-{machine.number}.log").read_text(errors="replace")
        assert server.poll() is None and time.monotonic() < end, f"{done.stderr}\n{log}"
        time.sleep(0.3)
