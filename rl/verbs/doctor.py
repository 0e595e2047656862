"""`doctor`: what is installed and what is missing on this machine. With a recipe: whether the machines of its run fit
together (rl.doctor)."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import isolation
from rl.doctor.finding import Finding
from rl.exitcodes import DONE, FAILED, NOTHING_STARTED
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
from rl.verbs.absent import is_file, no_such
from rl.verbs.lock import read_pins
from rl.verbs.usage import read_recipe, refuse
from rollout.types import Device


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
    """Print every finding. `argv` is empty, or a recipe's path and overrides. Returns 1 when a finding is not fine."""
    if argv:
        return _of_recipe(argv)
    findings = list(_findings())
    for finding in findings:
        print(finding.line())
    return DONE if all(finding.fine for finding in findings) else FAILED


LIMIT = "limit_s="
"""An argument of the verb itself, for machines that are slow to answer: how many seconds all questions may take."""


def _of_recipe(argv: Sequence[str]) -> int:
    if not is_file(argv[0]):
        return refuse(no_such(argv[0]))
    if any(importlib.util.find_spec(package) is None for package in ("pydantic", "ray")):
        return refuse(
            f"doctor RECIPE needs the environment of a run, and {sys.prefix} is none: any run of launch.sh builds it, "
            "and doctor without a recipe looks at this machine without it"
        )
    limit = next((word.removeprefix(LIMIT) for word in argv if word.startswith(LIMIT)), None)
    if limit is not None and not limit.isdecimal():
        return refuse(f"{LIMIT}{limit}: give whole seconds")
    recipe = read_recipe([word for word in argv if not word.startswith(LIMIT)])
    if recipe is None:
        return NOTHING_STARTED
    from rl.launch.hostfile import read_hostfile
    from rl.processes.guardian import run_guarded
    from rl.processes.tree import new_run_id

    try:
        if recipe.run.hostfile is not None:
            read_hostfile(Path(recipe.run.hostfile))
    except ValueError as error:
        return refuse(str(error))
    run_id, packages = new_run_id(), list(wanted_pins(chosen_device(), REPOSITORY / "locks"))

    def examination() -> int:
        from rl.doctor.ask import TOTAL_S
        from rl.doctor.examine import examine

        return examine(recipe, run_id, packages, TOTAL_S if limit is None else float(limit))

    return run_guarded(examination, run_id=run_id)


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
