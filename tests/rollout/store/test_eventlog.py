"""The ledger's log: what holds after resumes and torn lines."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from rollout.store.eventlog import Event, EventLog, all_events, check, read_events


def numbers(events: list[Event]) -> list[int]:
    return [event["step"] for event in events if event["event"] == "trained"]


def started(path: Path, *steps: int) -> EventLog:
    log = EventLog(path)
    log.append("started", start=1, seed=0)
    train(log, *steps)
    return log


def train(log: EventLog, *steps: int) -> int:
    """Log these steps. Returns the position after them."""
    for step in steps:
        log.append("trained", step=step, ids=[])
    return log.position


def resumed(path: Path, position: int | None, *then: int) -> EventLog:
    log = EventLog(path, position)
    events = [{"event": "trained", "step": step, "ids": []} for step in then]
    log.append("resumed", start=log.start, seed=0, position=position or 0, then=events)
    return log


def test_what_went_with_lost_weights_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "ledger.log"
    first = started(path, 1, 2)
    saved = first.position
    train(first, 3, 4)
    second = resumed(path, saved, 30)
    assert numbers(second.since) == [3, 4] and second.start == 2
    train(second, 5)
    assert numbers(read_events(path)) == [1, 2, 30, 5]
    third = resumed(path, saved)
    assert numbers(third.since) == [30, 5], "what the newest attempt to go on from there left"
    train(third, 6)
    assert numbers(read_events(path)) == [1, 2, 6] and third.start == 3
    assert numbers(all_events(path, saved)) == [3, 4, 30, 5, 6]


def test_a_checkpoint_of_an_abandoned_branch_goes_on_from_that_branch(tmp_path: Path) -> None:
    """The newest checkpoint is moved away, the run goes on from an older one, and then the newest is put back."""
    path = tmp_path / "ledger.log"
    log = started(path, 1)
    old = log.position
    new = train(log, 2)
    train(log, 3)
    branch = resumed(path, old)
    elsewhere = train(branch, 20, 21)
    train(branch, 22)
    back = resumed(path, new)
    assert numbers(back.since) == [3]
    train(back, 4)
    assert numbers(read_events(path)) == [1, 2, 4]
    assert numbers(EventLog(path, elsewhere).since) == [22]
    assert numbers(EventLog(path, new).since) == [4]


def test_a_start_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "ledger.log"
    started(path, 1, 2)
    log = resumed(path, None)
    assert log.since == [] and log.start == 2
    train(log, 1)
    assert numbers(read_events(path)) == [1]


def test_a_full_disk_costs_the_line_that_did_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "ledger.log"
    log = started(path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.position + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            train(log, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert train(log, 3) == path.stat().st_size
    assert numbers(read_events(path)) == [1, 3]


@pytest.mark.parametrize(
    "torn", [b'{"event": "trai', b'{"event": "trained", "step": 9, "ids": []}', b"\0" * 50, b"12\n"]
)
def test_a_torn_line_at_the_end_is_cut_with_a_word(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "ledger.log"
    position = started(path, 1).position
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert numbers(read_events(path)) == [1]
    log = EventLog(path, position)
    assert log.told == [f"ledger.log: cut {len(torn)} bytes at its end, of a line that was not written whole"]
    assert path.read_bytes() == whole and log.position == len(whole)


def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.log"
    position = started(path, 1, 2, 3).position
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"garbage\n", *lines[3:]]))
    before = path.read_bytes()
    for attempt in (lambda: read_events(path), lambda: EventLog(path), lambda: check(path, None)):
        with pytest.raises(ValueError, match=r"ledger.log:3: this line is damaged, and others follow it"):
            attempt()
    path.write_bytes(b"".join(lines[:2]) + b"garbage\ngarbage")
    with pytest.raises(ValueError, match=rf"others follow it; .*truncate --size={len(b''.join(lines[:2]))} "):
        EventLog(path)
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(ValueError, match=r"ledger.log:1: this is no ledger's log"):
        EventLog(path)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ValueError, match=rf"ends at byte {len(b''.join(lines[:-1]))}, but .* at byte {position}"):
        EventLog(path, position)
    assert len(path.read_bytes()) < len(before)
