"""The task mixture: positions, weights, splits, datasets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rollout.tasks.config import TasksConfig
from rollout.tasks.stream import task_stream
from rollout.types import Split, Task
from tests.support import task_source

BOTH = (task_source("python", weight=3), task_source("store", weight=1))


def test_the_mixture_follows_the_weights_in_every_stretch_and_repeats_no_task() -> None:
    stream = task_stream(TasksConfig(sources=BOTH, train_size=2400), "train", 0)
    tasks = list(stream)
    assert len(tasks) == len(stream) == 2400 and len({t.id for t in tasks}) == 2400
    for start in (0, 900, 1800):
        assert Counter(t.environment for t in tasks[start : start + 400]) == {"python": 300, "store": 100}


def test_a_position_always_holds_the_same_task() -> None:
    config = TasksConfig(sources=BOTH, train_size=50)
    assert task_stream(config, "train", 0)[17] == list(task_stream(config, "train", 0))[17]
    assert task_stream(config, "train", 0)[3:5] == [task_stream(config, "train", 0)[i] for i in (3, 4)]
    other = task_stream(config, "train", 1)
    assert other[17].messages != task_stream(config, "train", 0)[17].messages


def test_equal_weights_alternate_and_the_eval_list_has_its_size() -> None:
    config = TasksConfig(sources=(task_source("python"), task_source("store")), eval_size=7)
    assert [t.environment for t in task_stream(config, "eval", 0)] == ["python", "store"] * 3 + ["python"]


def test_positions_outside_the_stream_are_errors() -> None:
    stream = task_stream(TasksConfig(sources=BOTH, eval_size=2), "eval", 0)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            stream[index]


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def dataset(path: str) -> TasksConfig:
    return TasksConfig(sources=(task_source("store", dataset=path),), train_size=300, eval_size=40)


def row(number: int) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": f"task {number}"}], "payload": {"state": {}, "goal": {}}}


def test_dataset_rows_become_tasks_in_disjoint_splits_and_each_row_once_an_epoch(tmp_path: Path) -> None:
    config = dataset(write(tmp_path / "t.jsonl", [row(i) for i in range(80)]))
    train, held_out = ([t.messages[0]["content"] for t in task_stream(config, s, 0)] for s in ("train", "eval"))
    distinct = set(train)
    assert not distinct & set(held_out) and len(distinct | set(held_out)) == 80
    assert len(set(train[: len(distinct)])) == len(distinct)


def test_a_source_of_little_weight_has_a_place_and_keeps_it() -> None:
    config = TasksConfig(sources=(task_source("python", weight=5000), task_source("store", weight=1)), train_size=2002)
    environments = [task.environment for task in task_stream(config, "train", 0)]
    assert environments.count("store") == 2 and environments[1001:] == environments[:1001]


def test_a_row_may_name_itself_and_bring_metadata_but_need_not(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    for given, identity, payload, metadata in (
        ({"id": 7, "metadata": {"level": 2}, "payload": {"n": 1}}, "7", {"n": 1}, {"level": 2}),
        ({}, "store-{path}-0", {}, {}),
    ):
        path = write(tmp_path / "t.jsonl", [{"messages": messages} | given])
        tasks = [task for split in ("train", "eval") for task in _tasks_or_none(path, split)]
        assert tasks[0].id == identity.format(path=path)
        assert (tasks[0].payload, tasks[0].metadata) == (payload, metadata)


def _tasks_or_none(path: str, split: Split) -> list[Task]:
    try:
        return [task_stream(dataset(path), split, 0)[0]]
    except ValueError:  # the row is in the other split
        return []


def test_the_order_of_a_rows_keys_does_not_change_its_split(tmp_path: Path) -> None:
    rows = [row(i) for i in range(40)]
    turned = [{"messages": [dict(reversed(m.items())) for m in r["messages"]]} for r in rows]  # type: ignore[attr-defined]
    held_out = [
        {task.messages[0]["content"] for task in task_stream(dataset(write(tmp_path / name, made)), "eval", 0)}
        for name, made in (("a.jsonl", rows), ("b.jsonl", turned))
    ]
    assert held_out[0] == held_out[1]


def test_a_held_out_row_is_evaluated_once_however_large_the_evaluation_is(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [row(i) for i in range(80)])
    sources = (task_source("store", dataset=path), task_source("python"))
    stream = task_stream(TasksConfig(sources=sources, eval_size=100), "eval", 0)
    once = stream.once()
    rows = [task.messages[0]["content"] for task in once if task.environment == "store"]
    repeated = [task.messages[0]["content"] for task in stream if task.environment == "store"]
    assert len(rows) == len(set(rows)) < len(repeated) and set(rows) == set(repeated)
    assert sum(task.environment == "python" for task in once) == 50
    assert once == [task for i, task in enumerate(stream) if task not in stream[:i]]
    short = TasksConfig(sources=sources, eval_size=4)
    assert task_stream(short, "eval", 0).once() == task_stream(short, "eval", 0)[:]


def test_parquet_rows_become_tasks(tmp_path: Path) -> None:
    import datasets

    path = str(tmp_path / "t.parquet")
    datasets.Dataset.from_list([row(i) | {"payload": {"n": i}} for i in range(40)]).to_parquet(path)
    task = task_stream(dataset(path), "train", 0)[0]
    assert task.messages[0] == {"role": "user", "content": f"task {task.payload['n']}"}


def test_a_row_ends_at_a_newline_and_at_no_other_separator(tmp_path: Path) -> None:
    # U+2028 and U+0085 may stand unescaped in a JSON string, and str.splitlines splits at both.
    contents = [f"task\u2028{i}\x85." for i in range(80)]
    rows = [row(i) | {"messages": [{"role": "user", "content": content}]} for i, content in enumerate(contents)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / "t.jsonl"
    path.write_text("\r\n".join(lines), encoding="utf-8", newline="")
    stream = task_stream(dataset(str(path)), "train", 0)
    assert {task.messages[0]["content"] for task in stream} < set(contents)


def test_messages_without_content_get_an_empty_one_nulls_are_dropped_and_blank_lines_skipped(tmp_path: Path) -> None:
    called = {"role": "assistant", "tool_calls": [{"name": "set", "arguments": {"place": None, "name": "cat"}}]}
    row = {"messages": [{"role": "user", "content": "put"}, called], "payload": {"gone": None}}
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n\n" for _ in range(40)), encoding="utf-8")
    tasks = task_stream(TasksConfig(sources=(task_source("store", dataset=str(path)),), train_size=40), "train", 0)[:]
    wanted = {"role": "assistant", "content": "", "tool_calls": [{"name": "set", "arguments": {"name": "cat"}}]}
    assert all(task.messages[1] == wanted and task.payload == {} for task in tasks)
    assert max(int(task.id.rpartition("-")[2]) for task in tasks) > 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": ["hello"]}', r"field 'messages\[0\].role' is None; use one of system, user, assistant, tool$"),
        ('{"messages": []}', r"row 0: field 'messages' must be a non-empty list"),
        ('{"messages": [{"role": "robot"}]}', r"row 0: field 'messages\[0\].role' is 'robot'"),
        ('{"messages": [{"role": "user", "content": 3}]}', r"field 'messages\[0\].content' must be a string"),
        ('{"messages": [{"role": "user", "content": "x"}], "payload": 3}', r"row 0: field 'payload' must be an object"),
        ("{oops", r"t.jsonl:1: not JSON"),
        ('{"messages": [{"role": "user", "content": "x"}], "metadata": []}', r"row 0: field 'metadata' must be an obj"),
        ("[1]", r"t.jsonl:1: a row must be a JSON object, not list"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=reason):
        task_stream(dataset(str(path)), "train", 0)


def test_missing_files_and_empty_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        task_stream(dataset(str(tmp_path / "absent.jsonl")), "train", 0)
    with pytest.raises(ValueError, match="none of its 1 rows falls into the"):
        for split in ("train", "eval"):
            task_stream(dataset(write(tmp_path / "one.jsonl", [row(0)])), split, 0)


def test_a_task_knows_its_source_and_two_sources_may_play_one_environment(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [row(i) for i in range(40)])
    sources = (task_source("store", name="made"), task_source("store", name="given", dataset=path))
    tasks = list(task_stream(TasksConfig(sources=sources, train_size=20), "train", 0))
    assert [t.source for t in tasks] == ["made", "given"] * 10
    assert {t.environment for t in tasks} == {"store"} and tasks[1].id.startswith("given-")
