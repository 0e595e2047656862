"""The memory that a process may use: the machine's, or less where a control group says so, of a container or a job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from rewards.sandbox.cgroups import mounted, own_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """A version's files of a group's memory: its limit, what it uses, and what it counts of that as unused cache."""

    limit: str
    used: str
    cache: str


_VERSION_1 = _Files(limit="memory.limit_in_bytes", used="memory.usage_in_bytes", cache="total_inactive_file")
_VERSION_2 = _Files(limit="memory.max", used="memory.current", cache="inactive_file")


def memory_bytes() -> int:
    """Bytes of memory that this process and its neighbours in the smallest of its groups may have in all."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit, _ in _groups())])


def memory_left(available: int) -> int:
    """Bytes that are left for more, where so many are `available` on the machine."""
    return max(0, min([available, *(limit - used for limit, used in _groups())]))


def _groups() -> Iterator[tuple[int, int]]:
    """The limit of each group that this process is in and that has one, and the bytes that it uses now, in which cache
    that would be given up is not counted."""
    for controllers, path in own_groups():
        if "memory" in controllers:
            files, folder = _VERSION_1, mounted("memory", path)
        elif controllers == [""]:
            files, folder = _VERSION_2, mounted(None, path)
        else:
            continue
        while folder is not None and (folder / files.limit).is_file():
            limit = (folder / files.limit).read_text().strip()
            if limit.isdigit():
                used = int((folder / files.used).read_text())
                kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield int(limit), used - int(kept.get(files.cache, 0))
            folder = folder.parent
