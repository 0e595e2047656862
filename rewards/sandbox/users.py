"""A user for each execution, so that what the kernel counts per user is not shared by two of them.

The kernel counts processes, the buffers of pipes, descriptors in flight and inotify instances per user. Root can give
every execution a number of its own, of a range that nobody else should use; executions of several containers on one
machine may meet in it. An ordinary user has one number only, which all executions then share.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from pathlib import Path

FIRST = 1 << 30
"""The first of the numbers. Login users and the ranges of rootless containers lie far below."""
SLOTS = 512
"""Numbers of one process."""
_LARGEST_PID = 1 << 22


class Users:
    """The numbers that this process gives its executions, shells and workspaces."""

    def __init__(self) -> None:
        self.range = _range() if os.geteuid() == 0 else None
        self._free = deque(self.range or ())

    def take(self) -> int | None:
        """A number that nothing else of this process has; None where there is one user only.

        Raises:
            OSError: all are taken.
        """
        if self.range is None:
            return None
        if not self._free:
            raise OSError(f"{SLOTS} executions, shells and workspaces of this process have a user each: end some")
        return self._free.popleft()

    def give_back(self, number: int | None) -> None:
        """Nothing has this number any longer. It is the last one to be taken again."""
        if number is not None:
            self._free.append(number)


@functools.cache
def users() -> Users:
    """The numbers of this process."""
    return Users()


def _range() -> range | None:
    """The numbers for this process, within what its user namespace knows."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, length = map(int, line.split())
        if first <= FIRST and first + length >= FIRST + SLOTS * _LARGEST_PID:
            start = FIRST + SLOTS * (os.getpid() % _LARGEST_PID)
            return range(start, start + SLOTS)
        if length > 4 * SLOTS and first == 0:  # a rootless container: the upper half of what it has
            blocks = length // 2 // SLOTS
            start = length // 2 + SLOTS * (os.getpid() % blocks)
            return range(start, start + SLOTS)
    return None
