"""The ledger's log: a run's `ledger.log`, one JSON object a line, which is only ever appended to.

    started    start, seed                     the first line
    issued     id, task, position, version, …  a task was handed out, while `version` was published
    finished   id, address, versions           its group is durable at [segment, record]; its oldest and newest version
    taken      version, ids                    the step that trains `version` has these groups, in this order
    trained    step, ids                       the optimizer step is done
    published  version                         every engine holds these weights
    reissued   id, reason                      it ended; its task waits to be issued again
    dropped    id, reason                      it ended for good
    resumed    start, seed, position, then     a later start went on from a checkpoint that was written at `position`

Positions are numbers of bytes. What lies between the position of `resumed` and that line went with weights that are
lost; `then` lists the events that hold instead. So the file is a tree of stretches, one for each start. Readers follow
it from its last line back. Only a torn line at the end is ever cut.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollout.store.files import sync, write_whole

NAME = "ledger.log"
Event = dict[str, Any]
_BEGINS = (b'{"event": "started"', b'{"event": "resumed"')


class EventLog:
    """The log of this start, open for appending.

    `position` is where the checkpoint that this start goes on from was written; None: it goes on from none.

    Raises:
        ValueError: a line before the last one is damaged, or the file ends before `position`.
    """

    def __init__(self, path: Path, position: int | None = None) -> None:
        self.told: list[str] = []
        """What people should know, in words."""
        self.path = path
        check(path, position)
        stretches, end = _read(path, position)
        self.start = len(stretches) + 1
        """The number of this start, from 1."""
        self.since = [] if position is None else _since(stretches, position)
        """What happened after the checkpoint, from the same weights or later ones that came from them."""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if (torn := os.fstat(self._descriptor).st_size - end) > 0:
            os.ftruncate(self._descriptor, end)
            self.told.append(f"{path.name}: cut {torn} bytes at its end, of a line that was not written whole")
        sync(path.parent)
        self.position = end

    def append(self, event: str, **fields: Any) -> None:
        """Write one event. It survives this process at once, and the machine after the next `sync`."""
        content = json.dumps({"event": event, **fields}).encode() + b"\n"
        write_whole(self._descriptor, content, self.position)
        self.position += len(content)

    def sync(self) -> None:
        os.fsync(self._descriptor)


def read_events(path: Path) -> list[Event]:
    """The events that hold, in order: what went with lost weights is left out.

    Raises:
        ValueError: a line before the last one is damaged.
    """
    stretches, _ = _read(path, 0)
    return [event for _, event in _timeline(stretches)]


def all_events(path: Path, position: int) -> list[Event]:
    """Every event from `position` on, also those that went with lost weights."""
    stretches, _ = _read(path, position)
    return [event for stretch in stretches for _, event in stretch.events]


def records(path: Path) -> dict[int, int]:
    """The number of records that each segment must have: one more than the last that any event names."""
    known: dict[int, int] = {}
    for event in all_events(path, 0):
        if event["event"] == "finished":
            segment, record = event["address"]
            known[segment] = max(known.get(segment, 0), record + 1)
    return known


def check(path: Path, position: int | None) -> None:
    """Raise ValueError unless an `EventLog` can be opened, for a checkpoint that was written at `position`."""
    _, end = _read(path, position)
    if end < (position or 0):
        raise ValueError(f"{path} ends at byte {end}, but the checkpoint was written at byte {position}")


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What one start wrote: from `begin`, going on from `position` of what earlier starts wrote."""

    begin: int
    position: int
    events: list[tuple[int, Event]] = field(default_factory=list)


def _read(path: Path, position: int | None) -> tuple[list[_Stretch], int]:
    """Return all stretches, with their events from `position` on only (None: without events), and where the last whole
    line ends."""
    stretches: list[_Stretch] = []
    end, damaged = 0, None
    for number, line in enumerate(_lines(path), start=1):
        begins = line.startswith(_BEGINS)
        event = _event(line) if begins or position is None or end >= position else {}
        if damaged is not None:
            raise ValueError(
                f"{path}:{damaged}: this line is damaged, and others follow it; to go on without them, "
                f"cut the file there: truncate --size={end} {shlex.quote(str(path))}"
            )
        if event is None:
            damaged = number
            continue
        if begins:
            stretches.append(_Stretch(end, event.get("position", 0)))
        elif not stretches:
            raise ValueError(f"{path}:1: this is no ledger's log: it does not begin with `started`")
        if position is not None and end >= position:
            then = event.get("then", [event])
            stretches[-1].events.extend((end, kept) for kept in then)
        end += len(line)
    return stretches, end


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as file:
            yield from file


def _event(line: bytes) -> Event | None:
    """The event in a line; None where the line is torn or damaged."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if line.endswith(b"\n") and isinstance(event, dict) and "event" in event else None


def _timeline(stretches: list[_Stretch]) -> list[tuple[int, Event]]:
    """The events that hold at the end of the last of these stretches."""
    held: list[list[tuple[int, Event]]] = []
    for stretch, limit in _ancestry(stretches):
        held.append([(begin, event) for begin, event in stretch.events if begin < limit])
    return [pair for events in reversed(held) for pair in events]


def _ancestry(stretches: list[_Stretch]) -> Iterator[tuple[_Stretch, float]]:
    """The last stretch, the one that it goes on from, and so on; each with the position up to which it holds."""
    limit = math.inf
    for stretch in reversed(stretches):
        if stretch.begin < limit:
            yield stretch, limit
            limit = stretch.position


def _since(stretches: list[_Stretch], position: int) -> list[Event]:
    """The events after `position` in the newest timeline that contains it."""
    for count in range(len(stretches), 0, -1):
        if any(stretch.begin < position <= limit for stretch, limit in _ancestry(stretches[:count])):
            return [event for begin, event in _timeline(stretches[:count]) if begin >= position]
    return []
