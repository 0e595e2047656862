"""The map of columns, and rows that are skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rollout.tasks.columns import rename
from rollout.tasks.config import DatasetConfig, TasksConfig
from rollout.tasks.rows import Skipped, from_rows
from rollout.tasks.stream import task_stream
from tests.support import rows_of, task_source


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"q": "x", "a": 1}, {"prompt": "q"}, {"prompt": "x", "a": 1}),
        ({"a": 1, "b": 2}, {"a": "b", "b": "a"}, {"a": 2, "b": 1}),
        ({"q": "x", "prompt": "old"}, {"prompt": "q"}, {"prompt": "x"}),
        ({"r": {"t": 4, "s": 5}}, {"payload.answer": "r.t"}, {"r": {"t": 4, "s": 5}, "payload": {"answer": 4}}),
        ({"r.t": 1, "r": {"t": 2}}, {"a": "r.t"}, {"r": {"t": 2}, "a": 1}),
        ({"t": 1, "payload": {"x": 2}}, {"payload.y.z": "t"}, {"payload": {"x": 2, "y": {"z": 1}}}),
        ({"q": None}, {"prompt": "q"}, {"prompt": None}),
        ({"b": 1}, {"prompt": "q"}, {"b": 1}),
        ({"q": "text"}, {"prompt": "q.inner"}, {"q": "text"}),
        ({"q": 1}, {"a": "q", "b": "q"}, {"a": 1, "b": 1}),
    ],
)
def test_a_row_gets_our_names(row: dict[str, Any], columns: dict[str, str], expected: dict[str, Any]) -> None:
    before = json.dumps(row)
    assert rename(row, columns) == expected
    assert json.dumps(row) == before


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def test_a_column_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", {"question": "x"}, {"question": "y"})
    with pytest.raises(ValueError, match=r"no row so far has the column 'qestion', which columns.prompt names; .*'q"):
        rows_of(path, columns={"prompt": "qestion"}, on_bad_row="skip")


def test_a_column_that_only_some_rows_have_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", {"a": 1}, {"a": 2, "hint": "h"})
    assert [row.values for row in rows_of(path, columns={"metadata.hint": "hint"})] == [
        {"a": 1},
        {"a": 2, "metadata": {"hint": "h"}},
    ]


def test_a_payload_that_is_no_object_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", {"payload": "text", "t": 1})
    with pytest.raises(ValueError, match=r"r\.jsonl:1: columns\.payload\.tests: the row's own 'payload' is no object"):
        rows_of(path, columns={"payload.tests": "t"})


def test_rows_of_another_project_become_tasks_by_a_map(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"say {i}"}],
            "reward_model": {"style": "rule", "ground_truth": f"assert answer == '{i}'"},
            "extra_info": {"index": i},
        }
        for i in range(20)
    ]
    columns = {"payload.tests": "reward_model.ground_truth", "id": "extra_info.index"}
    dataset = DatasetConfig(path=write(tmp_path / "r.jsonl", *rows), columns=columns)
    task = task_stream(TasksConfig(sources=(task_source("python", dataset=dataset),)), "train", 0)[0]
    assert task.messages == ({"role": "user", "content": f"say {task.id}"},)
    assert task.payload == {"tests": f"assert answer == '{task.id}'"}


GOOD = {"messages": [{"role": "user", "content": "x"}], "payload": {"tests": "assert answer"}}


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    tests = [{**GOOD, "payload": {"tests": f"assert answer == {i}"}} for i in range(9)]
    path = write(tmp_path / "r.jsonl", *tests[:4], "{oops", {**GOOD, "payload": {}}, *tests[4:], "[1]")
    dataset = DatasetConfig(path=path, on_bad_row="skip")
    config = TasksConfig(sources=(task_source("python", dataset=dataset),), train_size=30, eval_size=30)
    streams = [task_stream(config, "train", 0), task_stream(config, "eval", 0)]
    assert len({task.id for stream in streams for task in stream}) == 9
    for stream in streams:
        (skipped,) = stream.skipped
        assert skipped.rows == 3 and skipped.first.startswith(f"{path}:5: not JSON")
        assert str(skipped).startswith(f"dataset {path}: 3 bad rows are skipped (on_bad_row); the first: {path}:5")
    assert {task.id for stream in streams for task in stream} >= {f"python-{path}-0", f"python-{path}-6"}


def test_the_number_of_a_row_does_not_depend_on_what_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", "{oops", {"a": 1})
    (row,) = rows_of(path, on_bad_row="skip")
    assert row.number == 1


def test_a_dataset_of_bad_rows_alone_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", "{oops", "[1]")
    skipped = Skipped(path)
    with pytest.raises(ValueError, match=r"none of its 2 rows can be used; the first: .*r\.jsonl:1: not JSON"):
        list(from_rows(DatasetConfig(path=path, on_bad_row="skip"), lambda row: row, skipped))
    assert skipped.rows == 2


def test_a_torn_file_is_an_error_also_where_rows_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        rows_of(str(tmp_path / "r.parquet"), on_bad_row="skip")
