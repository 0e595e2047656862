"""What a tree of processes takes, counted by the host where no control group does. Nothing in the tree can stop it."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

PAGE = resource.getpagesize()
MAX_INODES = 1 << 16
"""Files and folders in the file systems in memory of one execution."""


def takes_more(first: int, memory: int) -> bool:
    """Whether process `first` of a pid namespace and all others in it take more than `memory` bytes, or too many
    files."""
    return sum(map(_anonymous, _below(first))) > memory or _inodes(first) > MAX_INODES


def unlinked(first: int) -> int:
    """The bytes of files without a name that process `first` and those below it hold open."""
    held: dict[tuple[int, int], int] = {}
    for pid in _below(first):
        for entry in _entries(Path("/proc", str(pid), "fd")):
            with contextlib.suppress(OSError):
                file = os.stat(entry)
                if stat.S_ISREG(file.st_mode) and not file.st_nlink:
                    held[file.st_dev, file.st_ino] = file.st_blocks * 512
    return sum(held.values())


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder)]
    except OSError:
        return []


def _below(pid: int) -> Iterator[int]:
    """A process and its descendants. Orphans are children of process 1 of their namespace."""
    yield pid
    for listing in Path("/proc", str(pid), "task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in listing.read_text().split():
                yield from _below(int(child))


def _anonymous(pid: int) -> int:
    """The anonymous resident bytes of a process. Shared copy-on-write pages are counted in full."""
    try:
        _, resident, shared = map(int, Path("/proc", str(pid), "statm").read_text().split()[:3])
    except (OSError, ValueError):
        return 0
    return max(resident - shared, 0) * PAGE


def _inodes(first: int) -> int:
    """Zero where the host may not look into the namespace."""
    total = 0
    for place in ("tmp", "dev/shm"):
        with contextlib.suppress(OSError):
            system = os.statvfs(f"/proc/{first}/root/{place}")
            total += system.f_files - system.f_ffree
    return total
