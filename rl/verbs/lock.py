"""`lock`: pin every package of both environments, and check that each pin has a wheel for every Python we accept.

Standard library only, so that it works before any environment exists.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.paths import REPOSITORY
from rl.recipe.machine import LOCKS as FILES
from rl.recipe.machine import SUPPORTED_PYTHONS, TORCH_LOCK
from rl.verbs.usage import refuse_arguments

FOLDER = REPOSITORY / "locks"
GLIBC = "manylinux_2_31"
"""The oldest C library that every wheel runs with (llguidance needs it): that of Debian 11 and Ubuntu 20.04."""
TRIED = "x86_64"
UNTRIED = "aarch64"
"""Resolved for information only: launch.sh refuses this machine until somebody has run Sluice on it."""
OVERRIDES = ("--override", "locks/overrides.txt")
SOURCE_ONLY = ("deepspeed",)
"""Published without wheels; pip builds it, which needs no compiler."""
Pins = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """One resolution: its file, the extras of pyproject.toml that it includes, its Pythons, more arguments for uv."""

    name: str
    extras: tuple[str, ...]
    pythons: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    splits_torch: bool = False
    """Whether torch and its CUDA libraries go to TORCH_LOCK."""


LOCKS = (
    Lock(
        name=FILES["cpu"],
        extras=("cpu", "test"),
        pythons=SUPPORTED_PYTHONS["cpu"],
        arguments=(*OVERRIDES, "--override", "locks/cpu-overrides.txt"),
        splits_torch=True,
    ),
    Lock(name=FILES["cuda"], extras=("gpu", "test"), pythons=SUPPORTED_PYTHONS["cuda"], arguments=OVERRIDES),
)


class Unresolved(RuntimeError):
    """A lock could not be made; the text says why."""


def lock(argv: Sequence[str]) -> int:
    """Recompile every lock file from pyproject.toml; versions that still fit are kept. Returns 1 when one failed.

    Uses the uv on PATH, else installs one into a temporary environment. uv's own environment variables (UV_INDEX, …)
    decide where packages come from; no address is written into a file.
    """
    if (refused := refuse_arguments("lock", argv)) is not None:
        return refused
    with tempfile.TemporaryDirectory(prefix="sluice-uv-") as scratch:
        uv = shutil.which("uv") or _install_uv(Path(scratch) / "venv")
        for one in LOCKS:
            try:
                pins = _one_for_all(uv, one, Path(scratch))
            except Unresolved as error:
                print(f"lock: {one.name} is unchanged: {error}", file=sys.stderr)
                return 1
            _write(one, pins)
            print(f"lock: {one.name} has {len(pins)} pins, each with a wheel for Python {', '.join(one.pythons)}")
            print(f"lock: {UNTRIED}, for the record: {_untried(uv, one, pins, Path(scratch))}")
    return 0


def compile_command(uv: str, one: Lock, python: str, machine: str) -> list[str]:
    """The uv command for one lock. It fails when a package has no wheel for that Python and machine."""
    extras = [word for extra in one.extras for word in ("--extra", extra)]
    place = ["--python-version", python, "--python-platform", f"{machine}-{GLIBC}"]
    wheels = ["--only-binary", ":all:", *(word for name in SOURCE_ONLY for word in ("--no-binary", name))]
    quiet = ["--no-annotate", "--no-header", "--no-emit-find-links", "--no-emit-index-url", "--quiet"]
    return [uv, "pip", "compile", "pyproject.toml", *extras, *one.arguments, *place, *wheels, *quiet]


def lock_header(one: Lock) -> list[str]:
    """The comment at the top of a lock file, which says how it was made."""
    return [
        "# Every package of the environment, pinned. Made from pyproject.toml by `./launch.sh lock`, which runs",
        f"#   {' '.join(compile_command('uv', one, one.pythons[0], TRIED))}",
        f"# and the same for Python {', '.join(one.pythons[1:])}: all give these pins. Where packages come from is",
        "# taken from uv's environment. Installed with `pip install --no-deps -r`.",
    ]


TORCH_HEADER = [
    "# torch's ordinary build for the CPU environment, with the CUDA libraries that it cannot be imported without.",
    "# launch.sh installs a CPU build of the same version in its place where it finds one. Made by `./launch.sh lock`.",
]


def read_pins(path: Path) -> dict[str, str]:
    """The versions in a lock file, by package."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def is_torch(package: str) -> bool:
    """Whether a package is torch or one of the CUDA libraries that its ordinary build comes with."""
    return package == "torch" or package.startswith(("nvidia-", "cuda-"))


def _one_for_all(uv: str, one: Lock, scratch: Path) -> dict[str, str]:
    """The pins that every Python of a lock resolves to.

    Raises:
        Unresolved: a Python has no solution, two Pythons differ, or torch is not a build of the package index.
    """
    found = {python: _resolve(uv, one, python, TRIED, scratch) for python in one.pythons}
    first, *others = one.pythons
    for other in others:
        if difference := _difference(found[other], found[first]):
            raise Unresolved(f"it needs a file of its own for Python {other}, unlike {first}: {difference}")
    if "+" in found[first]["torch"]:
        raise Unresolved(f"torch=={found[first]['torch']} is no build of the package index: take its source away")
    return found[first]


def _resolve(uv: str, one: Lock, python: str, machine: str, scratch: Path) -> dict[str, str]:
    output = scratch / "pins.txt"
    paths = [FOLDER / one.name, *([FOLDER / TORCH_LOCK] if one.splits_torch else [])]
    # uv prefers the versions that its output file has already.
    output.write_text("".join(path.read_text(encoding="utf-8") for path in paths if path.exists()), encoding="utf-8")
    command = [*compile_command(uv, one, python, machine), "--output-file", str(output)]
    done = subprocess.run(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Unresolved(f"on {machine} with Python {python} there is no solution\n{done.stderr.strip()}")
    return read_pins(output)


def _untried(uv: str, one: Lock, pins: Pins, scratch: Path) -> str:
    """A sentence on how a lock resolves for the UNTRIED machine."""
    try:
        found = [_resolve(uv, one, python, UNTRIED, scratch) for python in one.pythons]
    except Unresolved as error:
        return str(error).splitlines()[0]
    return "; ".join(sorted({_difference(other, pins) or "the same pins" for other in found}))


def _difference(pins: Pins, others: Pins) -> str:
    lines = [f"without {name}" for name in sorted(others.keys() - pins.keys())]
    lines += [f"{name}=={pins[name]}" for name in sorted(pins) if others.get(name) != pins[name]]
    return ", ".join(lines)


def _write(one: Lock, pins: Pins) -> None:
    apart = {name for name in pins if is_torch(name)} if one.splits_torch else set()
    _write_file(one.name, lock_header(one), {name: pins[name] for name in pins.keys() - apart})
    if one.splits_torch:
        _write_file(TORCH_LOCK, TORCH_HEADER, {name: pins[name] for name in apart})


def _write_file(name: str, header: Sequence[str], pins: Pins) -> None:
    lines = [*header, *(f"{package}=={pins[package]}" for package in sorted(pins))]
    (FOLDER / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _install_uv(venv: Path) -> str:
    print("lock: installing uv into a temporary environment")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"], check=True)
    return str(venv / "bin" / "uv")
