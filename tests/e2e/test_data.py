"""A run on somebody's own rows: streamed from a hub under their own column names, and from a file; resumed with other
workers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from rollout.store.eventlog import read_events
from tests.e2e.harness import ONE_RANK, launch
from tests.rollout.tasks.small_hub import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = ("sft=null", "tasks.eval_size=4", "trainer.groups_per_step=2", "rollout.group_size=4", *ONE_RANK)
BAD = {"question": "has no tests"}


def rows(numbers: Iterable[int]) -> bytes:
    lines = [{"question": f"say {i}", "tests": {"code": f"assert answer == '{i}'"}} for i in numbers]
    return b"".join(json.dumps(line).encode() + b"\n" for line in [*lines[:3], BAD, *lines[3:]])


def issued(directory: Path) -> dict[int, str]:
    """What was asked at each position of the task stream."""
    found: dict[int, str] = {}
    for event in read_events(directory / "ledger.log"):
        if event["event"] == "issued":
            asked = event["task"]["messages"][-1]["content"]
            assert found.setdefault(event["position"], asked) == asked, "a position means one task"
    return found


def test_own_rows_go_on_with_other_workers_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    shape = {"columns": {"prompt": "question", "payload.tests": "tests.code"}, "on_bad_row": "skip"}
    streamed = {"path": "me/sums", "revision": "v1", "streaming": True, **shape}
    sources = [
        {"name": "hub", "environment": "python", "dataset": streamed},
        {"name": "file", "environment": "python", "dataset": {"path": str(file), **shape}},
    ]
    command = (tmp_path / "run", tmp_path / "cache", *SMALL, f"tasks.sources={json.dumps(sources)}")
    file.write_bytes(rows(range(1000, 1060)))
    revisions = {"main": {"data/train.jsonl": b""}, "v1": {"data/train.jsonl": rows(range(200))}}
    with serving({"me/sums": revisions}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        first = launch(*command, "run.steps=2", "checkpoint.every=2")
        assert first.code == 0, first.output[-3000:]
        assert (
            f"dataset {file}: 1 bad rows are skipped (on_bad_row); the first: {file}:4: field 'payload.te"
            in first.output
        )
        before = issued(tmp_path / "run")

        more = ("run.steps=4", "resume=auto", "rollout.workers=2", "checkpoint.every=2")
        file.write_bytes(rows(range(1000, 1061)))
        changed = launch(*command, *more)
        assert changed.code == 2 and "are not those that this run began with" in changed.output

        file.write_bytes(rows(range(1000, 1060)))
        second = launch(*command, *more)
        assert second.code == 0, second.output[-3000:]
    after = issued(tmp_path / "run")
    assert before.items() <= after.items() and len(after) > len(before)
    assert sorted(after) == list(range(len(after))), "every position was handed out"
    assert len(set(after.values())) == len(after), "and with it another task"
    assert {int(text.split()[1]) >= 1000 for text in after.values()} == {True, False}
    assert second.column("rollout/skipped_rows")[-1] == 2
