"""Which segments may be deleted, so that a run's trajectories stay below a size."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rollout.store import eventlog, segments


def needed(log: Path, position: int, held: Collection[int]) -> set[int]:
    """The segments that must stay: `held` by the issues that were open when a kept checkpoint was written, and those of
    all groups that were finished after the oldest of these, whose log position is `position`.

    Issues that are open now, and the groups of all steps after that checkpoint, are among these.
    """
    finished = (event for event in eventlog.all_events(log, position) if event["event"] == "finished")
    return {*held, *(event["address"][0] for event in finished)}


def trim(folder: Path, keep_bytes: float, needed: Collection[int], settled: Collection[int]) -> list[Path]:
    """Delete the oldest segments until the rest has at most `keep_bytes`, but only settled ones that are not needed.

    A segment is settled when nobody writes to it and the log lists all of its groups. One that was sealed just now is
    not: the worker may not have told of its last groups yet. Return what was deleted.
    """
    found = segments.paths(folder)
    sizes = {number: _size(path) for number, path in found.items()}
    total, deleted = sum(sizes.values()), []
    for number, path in found.items():
        newest = number == max(found)  # its number must not be given again
        if total <= keep_bytes or number in needed or number not in settled or newest:
            continue
        path.unlink(missing_ok=True)
        total -= sizes[number]
        deleted.append(path)
    return deleted


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a stream that was sealed just now
        return 0
