"""The driver's part of a checkpoint: how far the run is, and the state of the buffer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rl.rundir.atomic import atomic_write_bytes
from rl.rundir.progress import Progress
from rollout.buffer.buffer import BufferState

STATE_NAME = "run.json"


def write_state(checkpoint: Path, progress: Progress, buffer: BufferState) -> None:
    """Write progress and buffer into a checkpoint that is not published yet."""
    _write(checkpoint, {"progress": progress.to_dict(), "buffer": asdict(buffer)})


def rewrite_progress(checkpoint: Path, progress: Progress) -> None:
    """Rewrite a published checkpoint's progress, to record the evaluation of its weights."""
    _write(checkpoint, _read(checkpoint) | {"progress": progress.to_dict()})


class UnreadableState(ValueError):
    """What a resumed run goes on from is missing, damaged or of another version of Sluice."""


def read_state(checkpoint: Path) -> tuple[Progress, BufferState]:
    """Read what `write_state` wrote.

    Raises:
        UnreadableState: names the checkpoint, the reason and what to do.
    """
    try:
        return read_progress(checkpoint), read_buffer(checkpoint)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableState(
            f"checkpoint {checkpoint} cannot be read ({type(error).__name__}: {error}): it is damaged, or another "
            "version of Sluice wrote it; move it away to go on from the one before it, or name another run.dir"
        ) from error


def read_progress(checkpoint: Path) -> Progress:
    return Progress.from_dict(_read(checkpoint)["progress"])


def read_buffer(checkpoint: Path) -> BufferState:
    """The state from which the buffer of a resumed run continues."""
    return BufferState(**_read(checkpoint)["buffer"])


def _write(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """A task may hold what strict JSON and UTF-8 cannot: NaN, or half of a surrogate pair."""
    atomic_write_bytes(checkpoint / STATE_NAME, json.dumps(state).encode())


def _read(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    return state
