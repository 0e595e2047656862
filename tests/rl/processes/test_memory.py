"""The memory that a process may use, in a control group of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rewards.sandbox.cgroups import mounted, own_groups
from rl.paths import REPOSITORY
from rl.processes.memory import memory_bytes, memory_left

GIB = 2**30
SAYS = "from rl.processes.memory import *; held = bytearray({held}); print(memory_bytes(), memory_left(2**50))"


@pytest.fixture
def groups() -> Iterator[tuple[Path, str]]:
    """A control group with another in it, and the name of the file of their limits."""
    for controllers, path in own_groups():
        folder = mounted("memory" if "memory" in controllers else None, path)
        name = "memory.limit_in_bytes" if "memory" in controllers else "memory.max"
        outer = None if folder is None else folder / f"test-memory-{os.getpid()}"
        if outer is None or ("memory" not in controllers and controllers != [""]):
            continue
        inner = outer / "inner"
        try:
            inner.mkdir(parents=True)
            (outer / name).write_text(str(2 * GIB))
        except OSError:
            continue
        yield outer, name
        for made in (inner, outer):
            made.rmdir()
        return
    pytest.skip("this process may not make control groups for memory")


def said_in(group: Path, held: int = 0) -> list[int]:
    """What a process in that group says, which has so many bytes."""
    join = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c '{SAYS.format(held=held)}'"
    done = subprocess.run(["sh", "-c", join], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def test_the_smallest_limit_of_all_groups_above_counts(groups: tuple[Path, str]) -> None:
    outer, name = groups
    assert said_in(outer / "inner")[0] == 2 * GIB
    (outer / "inner" / name).write_text(str(GIB))
    assert said_in(outer / "inner")[0] == GIB


def test_what_a_group_uses_is_not_left(groups: tuple[Path, str]) -> None:
    outer, _ = groups
    total, left = said_in(outer / "inner")
    held = 500 * 2**20
    assert total == 2 * GIB and 1.8 * GIB < left < total
    assert left - said_in(outer / "inner", held)[1] == pytest.approx(held, rel=0.1)


def test_without_a_limit_it_is_the_machines() -> None:
    available = psutil.virtual_memory().available
    assert 0 < memory_left(available) <= available and 0 < memory_bytes() <= psutil.virtual_memory().total
