from __future__ import annotations

from pathlib import Path

import pytest

from rl.observe.timeline import Event, Timeline, read_timeline


def event(step: int) -> Event:
    return Event(step=step, name="train", start=1e9 + step, end=1e9 + step + 0.5, waited_for="“nothing”")


def test_events_survive_a_reopening_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    assert read_timeline(path) == []
    for step in (1, 2):
        Timeline(path).add(event(step))
        assert read_timeline(path)[-1] == event(step)
    path.write_bytes(path.read_bytes()[:-7])
    Timeline(path).add(event(3))
    assert read_timeline(path) == [event(1), event(3)]


def test_a_timeline_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = Timeline(tmp_path / "nowhere" / "timeline.jsonl")
    line.opened()
    line.add(event(1))
    assert caplog.text.count("is not written any more") == 1
