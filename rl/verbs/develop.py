"""The developer verbs: `test`, and `check` (is the tree healthy?)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from rl.paths import REPOSITORY
from rl.verbs.usage import refuse_arguments

PACKAGES = ("rl", "rollout", "rewards")
CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy", *PACKAGES),
)
WHOLE_SUITE = ("-n", "2", "--no-loadscope-reorder")
"""Two processes, and folders in their order: tests/e2e, the longest, comes first and has one of them to itself."""


def test(argv: Sequence[str]) -> int:
    """Run pytest with these arguments, else the whole suite. It replaces this process, so that signals and the exit
    code are pytest's own."""
    os.chdir(REPOSITORY)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *(argv or WHOLE_SUITE)])


def check(argv: Sequence[str]) -> int:
    """Check formatting, lint and types. All three run even when one fails; returns 1 when one failed."""
    if (refused := refuse_arguments("check", argv)) is not None:
        return refused
    failed = [" ".join(command) for command in CHECKS if _call([sys.executable, "-m", *command]) != 0]
    print(f"check: failed: {'; '.join(failed)}" if failed else "check: all clean")
    return 1 if failed else 0


def _call(command: Sequence[str]) -> int:
    print("$ " + " ".join(os.path.basename(word) if word == command[0] else word for word in command), flush=True)
    return subprocess.run(command, cwd=REPOSITORY).returncode
