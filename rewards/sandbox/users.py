"""A user for each execution, so that what the kernel counts per user is never shared by two of them.

The kernel counts processes, the buffers of pipes, descriptors in flight and inotify instances per user. Root can give
every execution a number of its own, of a range that nobody else should use; executions of several containers on one
machine may meet in it. An ordinary user has one number only, which all executions then share.
"""

from __future__ import annotations

import os
from pathlib import Path

FIRST = 1 << 30
"""The first of the numbers. Login users and the ranges of rootless containers lie far below."""
SLOTS = 256
"""Numbers of one process. One is used again by the execution that comes SLOTS later."""
_LARGEST_PID = 1 << 22


class Users:
    """The numbers that this process gives its executions."""

    def __init__(self) -> None:
        self.range = _range() if os.geteuid() == 0 else None
        self._next = 0

    def next(self) -> int | None:
        """The next number; None where there is one user only."""
        if self.range is None:
            return None
        self._next = (self._next + 1) % SLOTS
        return self.range[self._next]


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
