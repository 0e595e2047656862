"""Checkpoints of a run on disk: complete or not there at all. Knows nothing of what is in them, and needs no torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class CheckpointStore:
    """Checkpoints of one run: `<root>/step-000012`, complete or not there at all, the newest `keep` of them.

    Written under a hidden name, synced to disk and renamed; a crash at any point leaves the older ones as they were.
    """

    def __init__(self, root: Path, keep: int) -> None:
        self._root, self._keep = root, keep

    def begin(self, step: int) -> Path:
        """An empty directory to write into."""
        partial = self._partial(step)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def publish(self, step: int) -> Path:
        """Make the checkpoint of `step` visible, then delete what is older than the newest `keep` and leftovers."""
        partial, final = self._partial(step), self._root / f"step-{step:06d}"
        _sync_tree(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(self._root)
        for old in self._complete()[: -self._keep]:
            shutil.rmtree(old)
        for leftover in self._root.glob(".step-*.partial"):
            shutil.rmtree(leftover)
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = self._complete()
        return complete[-1] if complete else None

    def _complete(self) -> list[Path]:
        return sorted(self._root.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))

    def _partial(self, step: int) -> Path:
        return self._root / f".step-{step:06d}.partial"


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root, topdown=False):
        for file in files:
            _sync(Path(folder) / file)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
