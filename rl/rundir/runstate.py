"""The driver's part of a checkpoint: how far the run is, the ledger, and the groups that wait in the buffer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl.rundir.atomic import atomic_write_bytes, atomic_write_json
from rl.rundir.directory import read_groups
from rl.rundir.progress import Progress
from rollout.buffer.buffer import BufferState
from rollout.store.groups import encode_groups

STATE_NAME = "run.json"
GROUPS_NAME = "groups.arrow"


def write_state(checkpoint: Path, progress: Progress, buffer: BufferState) -> None:
    """Write progress and buffer into a checkpoint that is not published yet."""
    atomic_write_bytes(checkpoint / GROUPS_NAME, encode_groups(buffer.groups))
    atomic_write_json(checkpoint / STATE_NAME, {"progress": progress.to_dict(), "buffer": dict(buffer.ledger)})


def rewrite_progress(checkpoint: Path, progress: Progress) -> None:
    """Rewrite a published checkpoint's progress, to record the evaluation of its weights."""
    atomic_write_json(checkpoint / STATE_NAME, _read(checkpoint) | {"progress": progress.to_dict()})


class UnreadableCheckpoint(ValueError):
    """The driver's part of a checkpoint is missing, damaged or of another version of Sluice."""


def read_state(checkpoint: Path) -> tuple[Progress, BufferState]:
    """Read what `write_state` wrote.

    Raises:
        UnreadableCheckpoint: names the checkpoint, the reason and what to do.
    """
    try:
        return read_progress(checkpoint), read_buffer(checkpoint)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableCheckpoint(
            f"checkpoint {checkpoint} cannot be read ({type(error).__name__}: {error}): it is damaged, or another "
            "version of Sluice wrote it; move it away to go on from the one before it, or name another run.dir"
        ) from error


def read_progress(checkpoint: Path) -> Progress:
    return Progress.from_dict(_read(checkpoint)["progress"])


def read_buffer(checkpoint: Path) -> BufferState:
    """The state from which the buffer of a resumed run continues."""
    return BufferState(ledger=_read(checkpoint)["buffer"], groups=tuple(read_groups(checkpoint / GROUPS_NAME)))


def _read(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    return state
