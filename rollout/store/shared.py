"""The run directory as every machine of a run sees it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from rollout.store import eventlog
from rollout.store.reading import FOLDER

LOCK_NAME = "run.lock"
"""The file in a run directory that holds the id of the run that uses it."""


class NotShared(RuntimeError):
    """A machine of the run does not see the run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """A run directory, and the id of the run that uses it. Workers, trainer ranks and the buffer use the same files."""

    path: str
    run_id: str

    @property
    def trajectories(self) -> Path:
        return Path(self.path) / FOLDER

    @property
    def log(self) -> Path:
        return Path(self.path) / eventlog.NAME

    def check(self, role: str) -> None:
        """Raise NotShared unless this process sees the directory of this very run."""
        lock = Path(self.path) / LOCK_NAME
        try:
            found = lock.read_text(encoding="utf-8").strip()
        except OSError as error:
            found = f"({error.strerror or error})"
        if found != self.run_id:
            raise NotShared(
                f"{role} on {socket.gethostname()} does not see the run directory {self.path} (its {LOCK_NAME} is "
                f"{found!r}, expected {self.run_id!r}): set run.dir to a path that all machines of the run share"
            )
