"""Checkpoints of a run on disk: complete or not there at all. It does not know their content and needs no torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rollout.store.files import sync

MODEL, ADAPTER = "hf", "adapter"
"""The directories of a checkpoint that others load: the whole model, or the adapter of a run that trains one."""
_PARTIAL, _REPLACED, _DELETED = ".partial", ".replaced", ".deleted"
"""Endings of hidden directories: being written; stepping aside for a new one of the same step; being deleted."""


class CheckpointStore:
    """Checkpoints of one run: `<root>/step-000012`, complete or not there at all, the newest `keep` of them.

    A checkpoint is written under a hidden name, synced to disk and renamed. Before it is deleted, it gets a hidden name
    again. A crash at any point leaves the older ones as they were. Only one store at a time may use a root, because
    opening one clears up after a crash.
    """

    def __init__(self, root: Path, keep: int) -> None:
        self._root, self._keep = root, keep
        for replaced in root.glob(f".step-*{_REPLACED}"):
            final = root / replaced.name.removeprefix(".").removesuffix(_REPLACED)
            if not final.exists():  # the crash came before the new one had its name
                replaced.rename(final)
        self._clear_hidden()

    def begin(self, step: int) -> Path:
        """Make an empty hidden directory to write the checkpoint of `step` into."""
        partial = self._hidden(self._final(step), _PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def publish(self, step: int) -> Path:
        """Make the checkpoint of `step` visible, then delete what is older than the newest `keep` and leftovers."""
        final = self._final(step)
        partial = self._hidden(final, _PARTIAL)
        _sync_tree(partial)
        if final.exists():
            final.rename(self._hidden(final, _REPLACED))
        partial.rename(final)
        sync(self._root)
        self._clear_hidden()
        for old in self.steps(self._root)[: -self._keep]:
            old.rename(self._hidden(old, _DELETED))
        self._clear_hidden()
        return final

    def of_step(self, step: int) -> Path:
        """Where the checkpoint of a step is, if there is one."""
        return self._final(step)

    def all(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return self.steps(self._root)

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = self.all()
        return complete[-1] if complete else None

    @staticmethod
    def steps(root: Path) -> list[Path]:
        """The complete checkpoints below `root`, oldest first."""
        named = (path for path in root.glob("step-*") if path.name.removeprefix("step-").isdigit())
        return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))

    def _final(self, step: int) -> Path:
        return self._root / f"step-{step:06d}"

    def _hidden(self, final: Path, ending: str) -> Path:
        return final.with_name(f".{final.name}{ending}")

    def _clear_hidden(self) -> None:
        for leftover in self._root.glob(".step-*"):
            shutil.rmtree(leftover)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root, topdown=False):
        for file in files:
            sync(Path(folder) / file)
        sync(Path(folder))
