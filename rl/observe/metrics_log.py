"""metrics.jsonl: the local and authoritative record of a run's metrics."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from rl.observe.metrics import STEP_KEY, check_names
from rl.rundir.atomic import atomic_write_bytes

log = logging.getLogger(__name__)


class MetricsLog:
    """metrics.jsonl: one JSON object per line, flushed line by line, so that a kill loses at most the line in flight.

    Opening it removes lines that a crash has left torn, with a warning. A step may have several lines, but steps never
    go back: a resumed run calls `truncate_after` first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self._repair()
        self._last_step = max((step for step, _ in read_metrics(path)), default=-1)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line. Raises ValueError for an unregistered name or a step before the last one."""
        check_names(values)
        if step < self._last_step:
            raise ValueError(
                f"step {step} after step {self._last_step} in {self._path}: call truncate_after({step - 1}) to go back"
            )
        row: dict[str, float | None] = {STEP_KEY: step}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        self._last_step = step

    def truncate_after(self, step: int) -> None:
        """Drop the lines of steps after `step`: a resumed run takes these steps again."""
        self._file.close()
        kept = [line for line in self._path.read_bytes().splitlines(keepends=True) if _row(line)[STEP_KEY] <= step]
        atomic_write_bytes(self._path, b"".join(kept))
        self._last_step = min(self._last_step, step)
        self._file = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repair(self) -> None:
        lines = self._path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if _row(line)]
        if len(whole) < len(lines):
            log.warning("%s: %d torn lines are left out", self._path, len(lines) - len(whole))
            atomic_write_bytes(self._path, b"".join(whole))


def _row(line: bytes) -> dict[str, Any]:
    """The values of a line; none if a crash has left it torn (half of it, or NUL bytes after a power cut)."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        row = None
    return row if isinstance(row, dict) and isinstance(row.get(STEP_KEY), int) else {}


def read_metrics(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The lines of a metrics.jsonl in file order, as step and values. Non-finite values are NaN; torn lines are left
    out."""
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        if row := _row(line):
            rows.append((row.pop(STEP_KEY), {k: math.nan if v is None else v for k, v in row.items()}))
    return rows
