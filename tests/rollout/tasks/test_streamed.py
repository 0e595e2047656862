"""Datasets that are read while they are used."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from rollout.tasks import streamed
from rollout.tasks.config import DatasetConfig, TasksConfig
from rollout.tasks.stream import NO_END, TaskStream, task_stream
from rollout.tasks.streamed import neighbours_shuffled
from rollout.types import Split
from tests.support import task_source


def row(number: int) -> dict[str, Any]:
    return {"prompt": f"say {number}", "payload": {"tests": f"assert answer == '{number}'"}}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in rows))
    return str(path)


def stream(path: str, split: Split = "train", seed: int = 0, *, eval_size: int = 20, **keys: Any) -> TaskStream:
    own = {name: keys.pop(name) for name in ("eval_dataset", "eval_split") if name in keys}
    dataset = DatasetConfig(path=path, streaming=True, **keys)
    sources = (task_source("python", dataset=dataset, **own), task_source("store", weight=0.5))
    return task_stream(TasksConfig(sources=sources, eval_size=eval_size), split, seed)


def asked(tasks: TaskStream, count: int, begin: int = 0) -> list[str]:
    found = [tasks[i] for i in range(begin, begin + count)]
    return [str(task.messages[0]["content"]) for task in found if task.source == "python"]


def test_every_task_comes_once_a_pass_and_each_pass_has_another_order(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *(row(i) for i in range(60)))
    held_out = {task.messages[0]["content"] for task in stream(path, "eval").once() if task.source == "python"}
    trained = 60 - len(held_out)
    assert 0 < len(held_out) < 20
    tasks = stream(path)
    assert len(tasks) == NO_END
    every = asked(tasks, 3 * trained)
    first, second = every[:trained], every[trained : 2 * trained]
    assert {*first} == {*second} == {f"say {i}" for i in range(60)} - held_out
    assert first != second and first != sorted(first, key=lambda text: int(text.split()[1]))


def test_a_stream_begun_at_a_cursor_goes_on_where_another_stopped(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *(row(i) for i in range(40)))
    whole = asked(stream(path), 200)
    part = stream(path)
    begun, left = asked(part, 77), asked(stream(path), 123, begin=77)
    assert begun + left == whole
    assert asked(stream(path, seed=1), 200) != whole


def test_an_evaluation_reads_no_further_than_it_needs(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *(row(i) for i in range(200)), "{oops")
    assert len(stream(path, "eval", eval_size=6).once()) == 6
    with pytest.raises(ValueError, match=r"r\.jsonl:201: not JSON"):
        stream(path, "eval", eval_size=100)


def test_an_evaluation_may_have_rows_or_a_part_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *(row(i) for i in range(20)))
    own = stream(path, "eval", eval_split="train[15:]")
    assert {task.messages[0]["content"] for task in own if task.source == "python"} == {
        f"say {i}" for i in range(15, 20)
    }
    other = DatasetConfig(path=write(tmp_path / "e.jsonl", row(100)))
    assert set(asked(stream(path, "eval", eval_dataset=other), 20)) == {"say 100"}
    assert set(asked(stream(path, eval_dataset=other), 30)) == {f"say {i}" for i in range(20)}


def test_a_bad_row_is_told_when_it_comes(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *(row(i) for i in range(2000)), "{oops")
    tasks = stream(path)
    with pytest.raises(ValueError, match=r"r\.jsonl:2001: not JSON"):
        asked(tasks, 5000)


def test_bad_rows_are_skipped_and_counted_once(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *(row(i) for i in range(10)), "{oops", {"prompt": "no payload"})
    tasks = stream(path, on_bad_row="skip")
    assert len(set(asked(tasks, 100))) < 10
    (skipped,) = tasks.skipped
    assert skipped.rows == 2


def test_a_stream_without_rows_to_train_on_is_an_error(tmp_path: Path) -> None:
    kept = next(i for i in itertools.count() if len(stream_of_one(tmp_path, i)))
    with pytest.raises(ValueError, match="no task that is not held out"):
        asked(stream(write(tmp_path / "r.jsonl", row(kept))), 4)


def stream_of_one(folder: Path, number: int) -> list[Any]:
    """The held-out tasks of a dataset of one row, if it has one."""
    try:
        return stream(write(folder / "one.jsonl", row(number)), "eval").once()
    except ValueError as error:
        assert "none of its tasks falls to the evaluation" in str(error)
        return []


def test_a_stream_that_gives_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "ROW_S", 0.2)
    monkeypatch.setattr(streamed, "every_task", lambda *_: iter(lambda: __import__("time").sleep(30), 1))
    with pytest.raises(TimeoutError, match=r"no row came for 0 s; is its place reachable"):
        stream(write(tmp_path / "r.jsonl", row(0)))[0]


def test_a_resumed_run_knows_the_first_rows_again(tmp_path: Path) -> None:
    first = stream(write(tmp_path / "r.jsonl", *(row(i) for i in range(50)))).digest
    assert stream(str(tmp_path / "r.jsonl")).digest == first
    assert stream(write(tmp_path / "r.jsonl", *(row(i) for i in range(1, 51)))).digest != first


def test_neighbours_are_shuffled_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "NEIGHBOURS", 10)
    order = list(neighbours_shuffled(range(100), random.Random(0)))  # type: ignore[arg-type]
    assert sorted(order) == list(range(100)) and order != list(range(100))
    assert all(number <= place + 10 for place, number in enumerate(order)), "nothing comes before it was read"
