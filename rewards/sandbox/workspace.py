"""A folder that lives over many executions of one trajectory: files stay, processes do not.

It lies among the temporary files of this machine and takes the place of /tmp in the sandbox. It may begin as a copy of
a prepared folder, which is made without copying the contents where the file system can (`cp --reflink=auto`). Its
programs have one user, so that they own what earlier ones wrote.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

TOOL_S = 600.0
MAX_FILES = 1 << 17
"""Files and folders of a workspace."""


class Workspace:
    """One folder. Make it with `create`, and `remove` it in the end.

    Attributes:
        path: the folder on this machine. What is in it was made by untrusted code: never follow a link in there.
        uid: the user of its programs; None where there is one user only.
    """

    def __init__(self, path: Path, uid: int | None) -> None:
        self.path = path
        self.uid = uid

    @classmethod
    async def create(cls, uid: int | None, prepared: Path | None = None) -> Workspace:
        """Make a folder, empty or with what `prepared` holds.

        Raises:
            OSError: it cannot be made, or there is no such folder to copy.
        """
        path = Path(tempfile.mkdtemp(prefix="sluice-workspace-"), "files")  # nobody else may enter the outer folder
        path.mkdir()
        workspace = cls(path, uid)
        try:
            if prepared is not None:
                await _tool("cp", "-a", "--reflink=auto", "--", f"{prepared}/.", str(path))
            if uid is not None:
                await _tool("chown", "-R", "-h", f"{uid}:{uid}", "--", str(path))
        except BaseException:
            await workspace.remove()
            raise
        return workspace

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
