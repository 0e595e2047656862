"""timeline.jsonl: when the driver did what, one JSON object a line. Times are seconds since 1970 (rollout.clock)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A part of a step, or a phase outside the steps. `waited_for` says in words what it waited for meanwhile, where
    that is known."""

    step: int
    """The step that it belongs to, from 1; 0 for what comes before the first one."""
    name: str
    start: float
    end: float
    waited_for: str = ""


class Timeline:
    """Appends to a run's timeline. A kill loses at most the line in flight."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # a crash has left the last line torn

    def add(self, event: Event) -> None:
        self._file.write(json.dumps(asdict(event)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_timeline(path: Path) -> list[Event]:
    """The events in file order; none without a file. Torn lines are left out."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            events.append(Event(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return events
