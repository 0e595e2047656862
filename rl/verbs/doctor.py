"""`doctor`: what is installed and what is missing on this machine."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import isolation
from rl.paths import REPOSITORY
from rl.recipe.machine import (
    ENVIRONMENT_GB,
    LOCKS,
    SUPPORTED_PYTHONS,
    TORCH_LOCK,
    chosen_device,
    cpu_count,
    gpu_names,
    sandbox_error,
)
from rl.verbs.lock import read_pins
from rl.verbs.usage import refuse_arguments
from rollout.types import Device


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`: what was looked at, whether it is fine, and what was seen or is to be done."""

    name: str
    fine: bool
    text: str


def lock_differences(pins: Mapping[str, str]) -> list[str]:
    """Packages whose installed version is not the pinned one, as `name: installed, pinned …`."""
    installed = {name: _installed(name) for name in pins}
    return [f"{name}: {installed[name]}, pinned {pins[name]}" for name in pins if installed[name] != pins[name]]


def wanted_pins(device: Device, locks: Path) -> dict[str, str]:
    """The pins of a device's environment. On CPUs, torch is its CPU build if that is installed, else the ordinary build
    with its CUDA libraries."""
    pins = read_pins(locks / LOCKS[device])
    if device == "cuda":
        return pins
    ordinary = read_pins(locks / TORCH_LOCK)
    cpu_build = f"{ordinary['torch']}+cpu"
    return pins | ({"torch": cpu_build} if _installed("torch") == cpu_build else ordinary)


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def doctor(argv: Sequence[str]) -> int:
    """Print every finding. Returns 1 when one of them is not fine."""
    if (refused := refuse_arguments("doctor", argv)) is not None:
        return refused
    findings = list(_findings())
    for finding in findings:
        print(f"{'ok  ' if finding.fine else 'FAIL'}  {finding.name:<12} {finding.text}")
    return 0 if all(finding.fine for finding in findings) else 1


def _findings() -> Iterator[Finding]:
    device = chosen_device()
    yield _python(device)
    yield _packages(device)
    yield Finding("cpus", True, str(cpu_count()))
    yield Finding("gpus", True, ", ".join(gpu_names()) or "none, or hidden; recipes run on CPU here")
    yield _disk(0 if sys.prefix != sys.base_prefix else ENVIRONMENT_GB[device])
    error = sandbox_error()
    yield Finding("sandbox", error is None, error or isolation(SandboxConfig()))
    git = shutil.which("git")
    yield Finding("git", git is not None, git or "missing; install it, e.g. apt-get install git")


def _python(device: Device) -> Finding:
    version, known = ".".join(map(str, sys.version_info[:3])), SUPPORTED_PYTHONS[device]
    fine = "{}.{}".format(*sys.version_info) in known
    return Finding("python", fine, f"{version} at {sys.executable}" + ("" if fine else f"; needs {', '.join(known)}"))


def _packages(device: Device) -> Finding:
    different = lock_differences(wanted_pins(device, REPOSITORY / "locks"))
    name = f"locks/{LOCKS[device]}"
    if not different:
        return Finding("packages", True, f"exactly those of {name}")
    shown = "; ".join(different[:5]) + (f"; and {len(different) - 5} more" if len(different) > 5 else "")
    return Finding(
        "packages", False, f"differ from {name}: {shown}. Any run of launch.sh builds an environment from it"
    )


def _disk(needed: int) -> Finding:
    """Free disk space. `needed` is in GB, 0 where the environment is already there."""
    free = shutil.disk_usage(REPOSITORY).free / 1e9
    return Finding(
        "disk", free >= needed, f"{free:.0f} GB free in {REPOSITORY}" + (f", {needed} needed" if needed else "")
    )
