"""The run directory: where its files lie, and which run may use it.

    config.yaml  metrics.jsonl  timeline.jsonl  summary.json  ledger.log  run.lock
    trajectories/  trained/  checkpoints/  evaluations/  best/  merged/  logs/  wandb/  tensorboard/

`RunDir.open` refuses a directory that isn't ours, an earlier run without `resume`, and a second run at the same
time (an exclusive lock, which the kernel drops however the run ends). A `RunDir` deletes nothing but a directory in
which nothing was started.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import IO, Self

from rl.rundir.checkpoint import CheckpointStore
from rl.rundir.config import Resume
from rollout.store import eventlog
from rollout.store.reading import FOLDER
from rollout.store.shared import LOCK_NAME
from rollout.store.trained import FOLDER as TRAINED

CHECKPOINTS = "checkpoints"
EVALUATIONS = "evaluations"
METRICS = "metrics.jsonl"


class RunDir:
    """An open run directory. `resumed` says whether an earlier run was here, `previous_run_id` which one it was, where
    that is known."""

    def __init__(self, path: Path, lock: IO[str], *, resumed: bool, previous_run_id: str | None) -> None:
        self.path = path
        self.previous_run_id = previous_run_id
        self.resumed = resumed
        self.config = path / "config.yaml"
        self.metrics = path / METRICS
        self.timeline = path / "timeline.jsonl"
        self.summary = path / "summary.json"
        self.ledger = path / eventlog.NAME
        self.trajectories = path / FOLDER
        self.trained = path / TRAINED
        self.checkpoints = path / CHECKPOINTS
        self.logs = path / "logs"
        self.best = path / "best"
        """The model with the best evaluation among those of checkpoints (rl.rundir.best)."""
        self.merged = path / "merged"
        """The model that a finished run with an adapter leaves: its base with the adapter merged into it."""
        self._lock = lock

    def evaluation(self, step: int) -> Path:
        """The file of the evaluation after a step, 0 before the first one."""
        return self.path / EVALUATIONS / f"step-{step:06d}.json"

    def forget_evaluations(self, after: int) -> None:
        """Delete the evaluations of later steps, whose weights are lost."""
        for path in (self.path / EVALUATIONS).glob("step-*.json"):
            step = path.stem.removeprefix("step-")
            if step.isdigit() and int(step) > after:
                path.unlink()

    @classmethod
    def open(cls, path: Path, *, resume: Resume, run_id: str) -> Self:
        """Create or re-enter `path` and lock it until `close` or the end of the process.

        `run_id` names this process tree (rl.processes.tree); the next run here reads it to look for leftovers.

        Raises:
            ValueError: it is not a run directory, another run is using it, it holds an earlier run and `resume` is
                never, or it holds no checkpoint and `resume` is must.
        """
        path = path.expanduser().absolute()
        _check(path, resume)
        path.mkdir(parents=True, exist_ok=True)
        earlier = (path / LOCK_NAME).exists()
        lock = _acquire(path)
        previous = lock.read().strip() or None
        _overwrite(lock, run_id)
        run = cls(path, lock, resumed=earlier, previous_run_id=previous)
        for folder in (run.trajectories, run.checkpoints, run.logs):
            folder.mkdir(exist_ok=True)
        return run

    def discard(self) -> None:
        """Delete the directory of a run that started nothing in it. Keep it if an earlier run used it."""
        if not self.resumed:
            shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Release the lock; the directory stays."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(path: Path, resume: Resume) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"run.dir={path} is a file; name a directory")
    names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    earlier = LOCK_NAME in names
    if names and not earlier:
        raise ValueError(f"run.dir={path} is not empty and not a run directory; name a new or empty directory")
    if earlier and resume == "never":
        _release_or_refuse(path)
        raise ValueError(f"run.dir={path} holds an earlier run; set resume=auto to go on, or another run.dir")
    if resume == "must" and not CheckpointStore.steps(path / CHECKPOINTS):
        raise ValueError(f"resume=must, but run.dir={path} holds no checkpoint; set resume=auto, or its run.dir")


def _release_or_refuse(path: Path) -> None:
    """If another run still holds the lock, raise the ValueError that says so, not that of an earlier run."""
    _acquire(path).close()


def _overwrite(lock: IO[str], run_id: str) -> None:
    """Replace the content of the lock file. It is never empty meanwhile, so a full disk leaves the old id there."""
    lock.seek(0)
    lock.write(run_id)
    lock.flush()
    lock.truncate(len(run_id))
    os.fsync(lock.fileno())


def _acquire(path: Path) -> IO[str]:
    lock = os.fdopen(os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ValueError(f"run.dir={path} is in use by a run still going; wait, or set another run.dir") from None
    lock.seek(0)
    return lock
