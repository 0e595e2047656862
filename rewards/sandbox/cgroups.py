"""A control group for each execution, where this process may make some: it counts memory, also most of the kernel's.

The groups are children of this process's own. Version 2 needs the controllers `memory` and `pids` delegated to it;
version 1 needs its hierarchies of both writable. `cpu` is used where it is there: executions then get equal shares.
Version 1 counts the buffers of TCP and UDP apart, under a limit of the same size that UDP may exceed for a while.
Without groups we count (`rewards.sandbox.counting`), which misses the kernel's buffers.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("memory", "pids")
USED = (*NEEDED, "cpu")
OWN_BYTES = 4 << 20
"""What bubblewrap may take, beyond the program's memory."""
PREFIX = "sluice-"


@dataclass(frozen=True, slots=True)
class Parents:
    """The groups below which ours are made, by controller; in version 2 they are all the same."""

    version: int
    folders: dict[str, Path]


class Cgroup:
    """The group of one execution. Its processes must be gone before `remove`."""

    def __init__(self, parents: Parents, name: str, memory: int, processes: int) -> None:
        """Raises OSError."""
        self._version = parents.version
        self._folders = {controller: folder / name for controller, folder in parents.folders.items()}
        try:
            for folder in self.folders:
                folder.mkdir()
            self._limit(memory + OWN_BYTES, processes + 1)
        except OSError:
            self.remove()
            raise

    @property
    def folders(self) -> list[Path]:
        return list(dict.fromkeys(self._folders.values()))

    def add(self, pid: int) -> None:
        """Put a process in. What it starts later is in it, too. Raises OSError."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed a process because the group's memory was used up. False without a group."""
        file = "memory.oom_control" if self._version == 1 else "memory.events"
        try:
            lines = (self._folders["memory"] / file).read_text().splitlines()
        except OSError:
            return False
        return any(line.startswith("oom_kill ") and not line.endswith(" 0") for line in lines)

    def remove(self) -> None:
        """Remove the group. A process that is still ending leaves it to `sweep`."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _limit(self, memory: int, processes: int) -> None:
        limits = {"memory.limit_in_bytes": memory} if self._version == 1 else {"memory.max": memory}
        for name, value in limits.items():
            (self._folders["memory"] / name).write_text(str(value))
        (self._folders["pids"] / "pids.max").write_text(str(processes))
        others = {"memory.memsw.limit_in_bytes": memory, "memory.swap.max": 0, "memory.kmem.tcp.limit_in_bytes": memory}
        for name, value in others.items():
            with contextlib.suppress(OSError):  # of the other version, or without swap
                (self._folders["memory"] / name).write_text(str(value))


@functools.cache
def parents() -> Parents | None:
    """Where groups can be made; None if nowhere. Groups that ended processes have left are removed."""
    for version in (2, 1):
        folders = _version_2() if version == 2 else _version_1()
        if all(controller in folders for controller in NEEDED):
            found = Parents(version, folders)
            with contextlib.suppress(OSError):
                sweep(found)
                Cgroup(found, f"{PREFIX}{os.getpid()}-trial", 1 << 25, 4).remove()
                return found
    return None


def sweep(found: Parents) -> None:
    """Remove the groups of processes that are gone."""
    for folder in set(found.folders.values()):
        for left in folder.glob(f"{PREFIX}*"):
            if not Path("/proc", left.name.removeprefix(PREFIX).partition("-")[0]).exists():
                with contextlib.suppress(OSError):
                    left.rmdir()


def _version_1() -> dict[str, Path]:
    folders = {}
    for controllers, path in own_groups():
        for controller in set(controllers) & set(USED):
            if (folder := mounted(controller, path)) is not None and os.access(folder, os.W_OK):
                folders[controller] = folder
    return folders


def _version_2() -> dict[str, Path]:
    path = next((path for controllers, path in own_groups() if controllers == [""]), None)
    folder = None if path is None else mounted(None, path)
    if folder is None or not os.access(folder, os.W_OK):
        return {}
    control = folder / "cgroup.subtree_control"
    with contextlib.suppress(OSError):
        for controller in USED:
            with contextlib.suppress(OSError):  # refused where processes are in this group, unless it is the root
                control.write_text(f"+{controller}")
        enabled = control.read_text().split()
        return {controller: folder for controller in USED if controller in enabled}
    return {}


def own_groups() -> list[tuple[list[str], str]]:
    """The control groups of this process: the controllers of each ([""] in version 2), and its path."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return [(line.split(":", 2)[1].split(","), line.split(":", 2)[2]) for line in lines]


def mounted(controller: str | None, path: str) -> Path | None:
    """The folder of a group of this controller's hierarchy (None: of version 2)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = after.split()[:3]
        right = kind == "cgroup2" if controller is None else kind == "cgroup" and controller in options.split(",")
        if right and (path == root or path.startswith(root.rstrip("/") + "/")):
            folder = Path(mount, path[len(root.rstrip("/")) :].lstrip("/"))
            return folder if folder.is_dir() else None
    return None
