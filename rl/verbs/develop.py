"""The developer verbs: `test`, `check` (is the tree healthy?) and `lock` (pins every version).

Standard library only, so that `lock` works before any environment exists.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.paths import REPOSITORY
from rl.verbs.usage import refuse_arguments

PACKAGES = ("rl", "rollout", "rewards")
CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy", *PACKAGES),
)


@dataclass(frozen=True, slots=True)
class Lock:
    """One lock file: the extras of pyproject.toml it pins, and uv's further arguments."""

    name: str
    extras: tuple[str, ...]
    arguments: tuple[str, ...] = ()


LOCKS = (
    Lock("locks/cpu.txt", ("cpu", "test"), ("--override", "locks/cpu-overrides.txt")),
    Lock("locks/gpu.txt", ("gpu", "test")),
)


def test(argv: Sequence[str]) -> int:
    """Run pytest with these arguments, in place of this process: signals and the exit code are pytest's own."""
    os.chdir(REPOSITORY)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *argv])


def check(argv: Sequence[str]) -> int:
    """Formatting, lint and types; all of them run even when one fails. Returns 1 when one did."""
    if (refused := refuse_arguments("check", argv)) is not None:
        return refused
    failed = [" ".join(command) for command in CHECKS if _call([sys.executable, "-m", *command]) != 0]
    print(f"check: failed: {'; '.join(failed)}" if failed else "check: all clean")
    return 1 if failed else 0


def lock(argv: Sequence[str]) -> int:
    """Recompile every lock file from pyproject.toml; versions that still fit are kept. Returns 1 when one failed.

    Uses the uv on PATH, else installs one into a temporary environment. Where packages come from is uv's own
    environment (UV_FIND_LINKS, UV_INDEX, …): no address is written into a file. The CPU lock needs PyTorch's
    `torch==…+cpu` wheel to be found that way.
    """
    if (refused := refuse_arguments("lock", argv)) is not None:
        return refused
    with tempfile.TemporaryDirectory(prefix="sluice-uv-") as scratch:
        uv = shutil.which("uv") or _install_uv(Path(scratch) / "venv")
        for one in LOCKS:
            command = _compile_command(uv, one)
            if _call(command) != 0:
                print(f"lock: {one.name} could not be compiled (see above); it is unchanged", file=sys.stderr)
                return 1
            _write_header(one)
            print(f"lock: {one.name} compiled")
    return 0


def _compile_command(uv: str, one: Lock) -> list[str]:
    extras = [word for extra in one.extras for word in ("--extra", extra)]
    platform = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    quiet = ["--no-annotate", "--no-header", "--no-emit-find-links", "--no-emit-index-url", "--quiet"]
    output = ["--output-file", one.name]
    return [uv, "pip", "compile", "pyproject.toml", *extras, *one.arguments, *platform, *quiet, *output]


def lock_header(one: Lock) -> list[str]:
    """The comment at the top of a lock file: how it was made."""
    return [
        "# Every package of the environment, pinned. Made from pyproject.toml by `./launch.sh lock`, which runs",
        f"#   {' '.join(_compile_command('uv', one))}",
        "# with the package sources taken from uv's environment. Installed with `pip install --no-deps -r`.",
    ]


def _write_header(one: Lock) -> None:
    path = REPOSITORY / one.name
    pins = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    path.write_text("\n".join([*lock_header(one), *pins]) + "\n", encoding="utf-8")


def _install_uv(venv: Path) -> str:
    print("lock: installing uv into a temporary environment")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"], check=True)
    return str(venv / "bin" / "uv")


def _call(command: Sequence[str]) -> int:
    print("$ " + " ".join(os.path.basename(word) if word == command[0] else word for word in command), flush=True)
    return subprocess.run(command, cwd=REPOSITORY).returncode
