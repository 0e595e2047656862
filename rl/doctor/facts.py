"""What a machine says about itself. `gather` runs on each machine of a run; what it returns is plain data."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from rewards.sandbox.config import SandboxConfig
from rl.launch.addresses import interface_of, own_address
from rl.launch.greeting import code_digest
from rl.processes.memory import memory_left
from rl.processes.tree import SHARED_MEMORY
from rl.recipe.machine import PROBE_S, sandbox_error

VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
"""They name the interface of collectives."""
INFINIBAND = Path("/sys/class/infiniband")
QUERY = ("nvidia-smi", "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits")
UNLIMITED = resource.RLIM_INFINITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A machine. `packages` has the version of each package that was asked for; `routes` has, by the address of each
    other machine, the interface that leads there, or None; `names` are the addresses of its host name. Sizes are in
    bytes, of GPUs as (free, total). `sandbox` says why there is none; None where it works or is not needed."""

    host: str
    python: str
    code: str
    packages: Mapping[str, str]
    variables: Mapping[str, str]
    interfaces: tuple[str, ...]
    routes: Mapping[str, str | None]
    names: tuple[str, ...]
    binds: str | None
    """Why its own address cannot be bound; None where it can."""
    memory: int
    shared_memory: int
    files: int
    processes: int
    locked: int
    """Soft limits: of open files, processes, and locked memory in bytes. UNLIMITED is -1."""
    infiniband: bool
    gpus: tuple[tuple[int, int], ...]
    sandbox: str | None


def gather(address: str, others: Sequence[str], packages: Sequence[str], sandbox: SandboxConfig | None) -> Facts:
    """The facts of this machine, whose address in the cluster is `address`. `sandbox` is None where none is needed."""
    return Facts(
        host=socket.gethostname(),
        python=platform.python_version(),
        code=code_digest(),
        packages={name: _version(name) for name in packages},
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        interfaces=tuple(sorted(psutil.net_if_addrs())),
        routes={other: _route(other) for other in others},
        names=_names(),
        binds=_binds(address),
        memory=memory_left(psutil.virtual_memory().available),
        shared_memory=shutil.disk_usage(SHARED_MEMORY).total,
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        processes=resource.getrlimit(resource.RLIMIT_NPROC)[0],
        locked=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        infiniband=INFINIBAND.is_dir() and any(INFINIBAND.iterdir()),
        gpus=_gpus(),
        sandbox=None if sandbox is None else sandbox_error(sandbox),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _route(other: str) -> str | None:
    try:
        return interface_of(own_address(other))
    except OSError:
        return None


def _names() -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(dict.fromkeys(str(one[4][0]) for one in found))


def _binds(address: str) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _gpus() -> tuple[tuple[int, int], ...]:
    """Free and total memory of each GPU that nvidia-smi lists."""
    try:
        listing = subprocess.run(QUERY, capture_output=True, text=True, timeout=PROBE_S, check=True).stdout
        pairs = [tuple(int(number) * 2**20 for number in line.split(",")) for line in listing.splitlines()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
    return tuple((pair[0], pair[1]) for pair in pairs if len(pair) == 2)
