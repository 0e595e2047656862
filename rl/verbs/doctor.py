"""`doctor`: what is installed and what is missing on this machine."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rl.paths import REPOSITORY
from rl.recipe.machine import (
    ENVIRONMENT_GB,
    LOCKS,
    SUPPORTED_PYTHONS,
    chosen_device,
    cpu_count,
    gpu_names,
    sandbox_error,
)
from rl.verbs.usage import refuse_arguments


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`: what was looked at, whether it is fine, and what was seen or is to be done."""

    name: str
    fine: bool
    text: str


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


def doctor(argv: Sequence[str]) -> int:
    """Print every finding; returns 1 when one of them would stop a run."""
    if (refused := refuse_arguments("doctor", argv)) is not None:
        return refused
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
