"""A folder that lives over many executions of one trajectory: files stay, processes do not.

It lies among the temporary files of this machine and takes the place of /tmp in the sandbox. Its programs have one
user, so that they own what earlier ones wrote. It may begin as a copy of a folder. Where many begin alike, as for the
members of a group, the folder is prepared once: each workspace then holds only what it changes, under an overlay, where
this process may mount one; else it is a copy, without its contents where the file system can (`cp --reflink=auto`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

TOOL_S = 600.0
MAX_FILES = 1 << 17
"""Files and folders of a workspace."""


OVERLAY = (
    "unshare", "--mount", "--propagation", "private", "sh", "-c",
    'mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4" || exit 1; shift 4; exec "$@"', "sh",
)  # fmt: skip
"""A command that takes the folder below, that of the changes, one for the kernel's work and the place of the mount."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder from which workspaces begin. Their programs have its user."""

    path: Path
    uid: int | None
    overlaid: bool


async def prepare(uid: int | None, folder: Path, overlaid: bool) -> Prepared:
    """Copy a folder for workspaces to begin from, `overlaid` if that can be done. Raises OSError: it is not there."""
    copied = await Workspace.create(uid, folder)
    return Prepared(copied.path, uid, overlaid and await _can_overlay(copied.path))


async def _can_overlay(path: Path) -> bool:
    if os.geteuid() != 0 or set(str(path)) & set(',:\\"'):
        return False
    trial = await Workspace.create(None)
    trial.below = path
    try:
        return (await asyncio.to_thread(_run, [*trial.mounting(), "true"])).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        await trial.remove()


class Workspace:
    """One folder. Make it with `create`, and `remove` it in the end.

    Attributes:
        path: the folder on this machine. What is in it was made by untrusted code: never follow a link in there.
        uid: the user of its programs; None where there is one user only.
        below: the prepared folder that shows where `path` holds nothing; None if `path` holds everything.
    """

    def __init__(self, path: Path, uid: int | None, below: Path | None = None) -> None:
        self.path = path
        self.uid = uid
        self.below = below

    @classmethod
    async def create(cls, uid: int | None, prepared: Path | Prepared | None = None) -> Workspace:
        """Make a folder, empty or with what `prepared` holds. `uid` is that of a prepared folder.

        Raises:
            OSError: it cannot be made, or there is no such folder to copy.
        """
        outer = Path(tempfile.mkdtemp(prefix="sluice-workspace-"))  # nobody else may enter it
        for name in ("files", "work", "whole"):
            (outer / name).mkdir()
        overlaid = isinstance(prepared, Prepared) and prepared.overlaid
        source = prepared.path if isinstance(prepared, Prepared) else prepared
        path = outer / "files"
        workspace = cls(path, uid, source if overlaid else None)
        try:
            if source is not None and not overlaid:
                await _tool("cp", "-a", "--reflink=auto", "--", f"{source}/.", str(path))
            if uid is not None:
                await _tool("chown", "-R", "-h", f"{uid}:{uid}", "--", str(path))
        except BaseException:
            await workspace.remove()
            raise
        return workspace

    @property
    def whole(self) -> Path:
        """The folder that programs see: the files, or the place of their overlay."""
        return self.path if self.below is None else self.path.parent / "whole"

    def mounting(self) -> list[str]:
        """The beginning of a command that mounts the overlay for itself alone, if there is one."""
        if self.below is None:
            return []
        return [*OVERLAY, str(self.below), str(self.path), str(self.path.parent / "work"), str(self.whole)]

    def open(self) -> None:
        """Let the next program in, whatever rights the last one has left on the folder."""
        self.path.chmod(0o755)

    async def has_room(self, most: int) -> bool:
        """Whether its files take at most so many bytes, and are not too many. One that cannot be looked at has none."""
        for limit, option in ((most, "-B1"), (MAX_FILES, "--inodes")):
            try:
                # du fails, but prints its sum, if a file vanishes meanwhile.
                shown = (await asyncio.to_thread(_run, ["du", "-sx", option, "--", str(self.path)])).stdout
                if int(shown.split()[0]) > limit:
                    return False
            except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
                return False
        return True

    async def remove(self) -> None:
        """Remove it with all that is in it, however deep and whatever its rights are."""
        try:
            if os.geteuid() != 0:
                await asyncio.to_thread(_run, ["chmod", "-R", "u+rwX", "--", str(self.path)])
            await asyncio.to_thread(_run, ["rm", "-rf", "--", str(self.path.parent)])
        except subprocess.TimeoutExpired:
            log.error("sandbox: the workspace %s could not be removed in %g s", self.path.parent, TOOL_S)


async def _tool(*command: str) -> str:
    """What one of the system's tools prints. They handle any names and depths. Raises OSError: it failed."""
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(f"{command[0]} is not on PATH")
    try:
        done = await asyncio.to_thread(_run, [program, *command[1:]])
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} took longer than {TOOL_S:g} s") from error
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()[:300]}")
    return str(done.stdout)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=TOOL_S, check=False, stdin=subprocess.DEVNULL
    )
