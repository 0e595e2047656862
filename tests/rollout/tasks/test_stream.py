"""The task mixture: positions, weights, splits, datasets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rollout.tasks.config import TasksConfig
from rollout.tasks.stream import task_stream
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


PAYLOAD: dict[str, object] = {"state": {}, "goal": {}}


def row(number: int) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": f"task {number}"}], "payload": PAYLOAD}


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
    for given, identity, metadata in (
        ({"id": 7, "metadata": {"level": 2}, "payload": PAYLOAD | {"n": 1}}, "7", {"level": 2}),
        ({"payload": PAYLOAD | {"n": 1}}, "store-{path}-0", {}),
    ):
        path = write(tmp_path / "t.jsonl", [{"messages": [{"role": "user", "content": "x"}]} | given, row(1)])
        tasks = [task for split in ("train", "eval") for task in task_stream(dataset(path), split, 0)[:1]]  # type: ignore[arg-type]
        (task,) = (task for task in tasks if task.messages[0]["content"] == "x")
        assert task.id == identity.format(path=path)
        assert (task.payload, task.metadata) == (PAYLOAD | {"n": 1}, metadata)


def test_the_order_of_a_rows_keys_does_not_change_its_split(tmp_path: Path) -> None:
    rows = [row(i) for i in range(40)]
    turned = [r | {"messages": [dict(reversed(m.items())) for m in r["messages"]]} for r in rows]  # type: ignore[attr-defined]
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
    payload = {"state": {"a": "b"}, "goal": {"a": "b"}}
    datasets.Dataset.from_list([row(i) | {"payload": payload | {"n": i}} for i in range(40)]).to_parquet(path)
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


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f"{json.dumps(row(i))}\n \n\n" for i in range(40)), encoding="utf-8")
    assert len({task.id for task in task_stream(dataset(str(path)), "train", 0)}) > 20


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": ["hello"]}, r"field 'messages'\[0\] must be an object with role and content, not 'hello'"),
        ({"messages": []}, r"field 'messages' must be a non-empty list"),
        (
            {"messages": [{"role": "robot"}]},
            r"field 'messages'\[0\].role is 'robot'; use one of system, developer, user",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, r"field 'messages'\[0\].content must be a text or a list of"),
        ({"payload": 3}, r"field 'payload' must be an object, not 3"),
        ({"metadata": []}, r"field 'metadata' must be an object, not \[\]"),
        ({"id": [1]}, r"field 'id' must be a text or an integer, not \[1\]"),
        ({"tools": [{"name": "f"}]}, r"field 'tools': a task has the tools of its environment"),
        ({"prompt": "other"}, r"it has both 'messages' and 'prompt', which differ"),
        ({"messages": None, "question": "x"}, r"it has no 'messages'; its columns are 'payload', 'question'"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "ends with the assist",
        ),
        ({"payload": None}, r"field 'payload.state': Field required; environment 'store' needs it$"),
        (
            {"payload": None, "answer": 3},
            r"'payload.state': Field required; .* needs it; its other columns are 'answer'",
        ),
        (
            {"payload": {"state": [], "goal": {}}},
            r"field 'payload.state': Input should be a valid dictionary, not \[\]",
        ),
        ({"payload": '{"state": {}'}, r"field 'payload': not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    path = write(tmp_path / "t.jsonl", [row(0), row(1) | changes])
    with pytest.raises(ValueError, match=rf"t\.jsonl:2: .*{reason}"):
        task_stream(dataset(path), "train", 0)


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (["assert answer == '4'"], "a list of tests needs entry_point"),
        ({"a": 1}, "tests are a program, its lines, or objects with input and output"),
        (True, "tests are a program"),
        (["f(1)", {"input": "1"}], "tests are a program"),
        ("exec(answer)", "line 1 of the tests runs the answer in their own process"),
        (" \n", "there are no tests: any answer would pass"),
        ("def (", "the tests are not Python"),
        ("return 1", "the tests are not Python"),
        ("a\0b", "the tests are not Python"),
        ("(" * 5000, "the tests are not Python"),
    ],
)
def test_tests_that_are_no_program_are_refused(tmp_path: Path, tests: object, reason: str) -> None:
    path = write(tmp_path / "t.jsonl", [row(0) | {"payload": {"tests": tests}}])
    with pytest.raises(ValueError, match=rf"t\.jsonl:1: field 'payload.tests': .*{reason}"):
        task_stream(TasksConfig(sources=(task_source("python", dataset=path),)), "train", 0)


def test_what_a_row_says_arrives_as_it_was_written(tmp_path: Path) -> None:
    payload = {"state": {"a": "b"}, "goal": {}, "extra": [None, {"x": None}, 1.5, 10**30, "\u2028"]}
    given = [
        {
            "messages": json.dumps([{"role": "user", "content": "x"}]),
            "payload": json.dumps(payload),
            "difficulty": None,
        },
        {"prompt": "y", "payload": payload, "answer": {"n": None}, "metadata": {"level": None}},
    ]
    path = write(tmp_path / "t.jsonl", given)
    tasks = [task for split in ("train", "eval") for task in task_stream(dataset(path), split, 0)[:1]]  # type: ignore[arg-type]
    first, second = sorted(tasks, key=lambda task: str(task.messages[0]["content"]))
    assert (first.messages, first.payload, first.metadata) == (({"role": "user", "content": "x"},), payload, {})
    assert (second.messages, second.payload) == (({"role": "user", "content": "y"},), payload)
    assert second.metadata == {"answer": {"n": None}, "level": None}


def test_tasks_of_one_prompt_are_split_by_the_rest_of_the_task(tmp_path: Path) -> None:
    rows = [row(0) | {"payload": {"state": {"lamp": str(i)}, "goal": {}}} for i in range(2)]
    path = write(tmp_path / "t.jsonl", rows)
    train, held_out = (task_stream(dataset(path), split, 0)[0] for split in ("train", "eval"))  # type: ignore[arg-type]
    assert train.payload != held_out.payload


def test_the_same_task_is_never_in_both_splits(tmp_path: Path) -> None:
    rows = [row(i % 20) | {"metadata": {"row": i}} for i in range(100)]
    path = write(tmp_path / "t.jsonl", rows)
    train, held_out = ({str(t.messages) for t in task_stream(dataset(path), s, 0)} for s in ("train", "eval"))  # type: ignore[arg-type]
    assert len(train | held_out) == 20 and not train & held_out


def test_an_evaluation_may_have_rows_of_its_own(tmp_path: Path) -> None:
    path, other = write(tmp_path / "t.jsonl", [row(0)]), write(tmp_path / "e.jsonl", [row(i) for i in range(3)])
    for eval_path, count in ((other, 3), (path, 1)):
        config = TasksConfig(sources=(task_source("store", dataset=path, eval_dataset=eval_path),), eval_size=9)
        assert len({t.messages[0]["content"] for t in task_stream(config, "train", 0)[:20]}) == 1
        assert len(task_stream(config, "eval", 0).once()) == count


def test_a_hugging_face_dataset_has_splits(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    write(folder / "train.jsonl", [row(0)])
    write(folder / "test.jsonl", [row(1), row(2)])
    config = TasksConfig(sources=(task_source("store", dataset=str(folder), eval_split="test"),))
    assert {t.messages[0]["content"] for t in task_stream(config, "eval", 0)} == {"task 1", "task 2"}
    assert task_stream(config, "train", 0)[0].messages[0]["content"] == "task 0"


def test_a_dataset_of_one_task_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", [row(0), row(0)])
    with pytest.raises(ValueError, match=r"only one task, .* tasks\.sources\.N\.eval_dataset"):
        task_stream(dataset(path), "train", 0)


def test_a_task_knows_its_source_and_two_sources_may_play_one_environment(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [row(i) for i in range(40)])
    sources = (task_source("store", name="made"), task_source("store", name="given", dataset=path))
    tasks = list(task_stream(TasksConfig(sources=sources, train_size=20), "train", 0))
    assert [t.source for t in tasks] == ["made", "given"] * 10
    assert {t.environment for t in tasks} == {"store"} and tasks[1].id.startswith("given-")
