"""timeline.jsonl: when the driver did what, one JSON object a line. Times are seconds since 1970 (rollout.clock)."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from rollout.clock import now

log = logging.getLogger(__name__)

OPENED = "opened"
"""The event with which each start of a run begins."""


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
    """Appends to a run's timeline. A kill loses at most the line in flight.

    It is for people: when it cannot be written, a warning says so once, and the run goes on without.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._off = False
        torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        self._append("\n" if torn else "")

    def opened(self) -> None:
        """Say that a start of the run begins now."""
        self.add(Event(step=0, name=OPENED, start=now(), end=now()))

    def add(self, event: Event) -> None:
        self._append(json.dumps(asdict(event)) + "\n")

    def _append(self, text: str) -> None:
        try:
            if not self._off:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(text)
        except OSError as error:
            self._off = True
            log.warning("%s is not written any more: %s", self._path, error)


def read_timeline(path: Path) -> list[Event]:
    """The events in file order; none without a file. Torn lines are left out."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            events.append(Event(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return events
