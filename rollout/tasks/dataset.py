"""The rows of a dataset as tasks of an environment, checked before anything starts, and their split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rollout.contracts import EnvironmentSpec
from rollout.plain import plain
from rollout.splits import EVAL_SHARE, place_of
from rollout.tasks.config import DatasetConfig, TaskSource
from rollout.tasks.conversation import EMPTY, listed, read_question
from rollout.tasks.rows import NamedRow, Skipped, from_rows, from_text
from rollout.types import Split, Task

TASK_COLUMNS = ("id", "messages", "prompt", "payload", "metadata", "tools")
"""The columns that a task is made of. All others become metadata, under their names."""


@dataclass(slots=True)
class RowTasks:
    """The tasks of a split, in the order of their rows, and what was left out of the dataset."""

    tasks: list[Task]
    skipped: Skipped


def dataset_tasks(source: TaskSource, spec: EnvironmentSpec, split: Split) -> RowTasks:
    """Read the tasks of a split of a source with a dataset.

    Raises:
        ValueError: the dataset cannot be read, a row is no task of the environment, or no row is left for the split.
            The message names the file, the row and the field.
    """
    dataset = dataset_of(source, split)
    assert dataset is not None
    skipped = Skipped(dataset.path)
    tasks = list(every_task(source, dataset, spec, skipped))
    return RowTasks(tasks if source.sets_apart else _of_split(tasks, split, dataset.path), skipped)


def dataset_of(source: TaskSource, split: Split) -> DatasetConfig | None:
    """The rows that have the tasks of a split, among others where no rows are set apart for evaluation."""
    if split == "train" or source.dataset is None or not source.sets_apart:
        return source.dataset
    return source.eval_dataset or source.dataset.model_copy(update={"split": source.eval_split})


def every_task(source: TaskSource, dataset: DatasetConfig, spec: EnvironmentSpec, skipped: Skipped) -> Iterator[Task]:
    """The tasks of all rows of `dataset`, one of the source's, one by one. Raises what `from_rows` raises."""

    def make(row: NamedRow) -> Task:
        return row_task(row, f"{source.label}-{dataset.path}-{row.number}", source.label, spec)

    return from_rows(dataset, make, skipped)


def place(task: Task) -> float:
    """A number from 0 to 1 for what the task asks and its payload. Tasks below EVAL_SHARE are held out."""
    return place_of(json.dumps([task.messages, task.payload], sort_keys=True))


def row_task(row: NamedRow, name: str, label: str, spec: EnvironmentSpec) -> Task:
    """The task of one row. It is called `name` unless the row has an `id`.

    Raises:
        ValueError: a field is missing or wrong for the environment; the message names row and field.
    """
    values = {key: value for key, value in row.values.items() if value is not None}
    if values.get("tools") not in EMPTY:
        raise ValueError(f"{row.where}: field 'tools': a task has the tools of its environment; leave them out")
    identity = values.get("id", name)
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise ValueError(f"{row.where}: field 'id' must be a text or an integer, not {identity!r:.100}")
    others = {key: value for key, value in values.items() if key not in TASK_COLUMNS}
    payload = _object(values, "payload", row.where)
    _check_payload(payload, spec, others, row.where)
    messages = tuple(read_question(values, row.where))
    if messages[-1]["role"] == "assistant":
        raise ValueError(f"{row.where}: field 'messages' ends with the assistant: a task ends with what it is asked")
    return Task(
        id=str(identity),
        environment=spec.name,
        source=label,
        messages=messages,
        payload=payload,
        metadata={**others, **_object(values, "metadata", row.where)},
    )


def checked_task(task: Task) -> Task:
    """A generated task in plain values (`rollout.plain`). Raises ValueError, which names the field, if it has none."""
    where = f"environment {task.environment!r}, task {task.id}"
    messages = plain(task.messages, f"{where}: messages")
    payload, metadata = plain(task.payload, f"{where}: payload"), plain(task.metadata, f"{where}: metadata")
    return Task(
        id=str(task.id),
        environment=task.environment,
        source=task.source,
        messages=tuple(messages),
        payload=payload,
        metadata=metadata,
    )


def _object(values: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = from_text(values.get(name, {}), f"{where}: field {name!r}")
    if not isinstance(found, dict):
        raise ValueError(f"{where}: field {name!r} must be an object, not {found!r:.100}")
    return found


def _check_payload(payload: dict[str, Any], spec: EnvironmentSpec, others: Mapping[str, Any], where: str) -> None:
    if spec.payload is None:
        return
    try:
        spec.payload.model_validate(payload, strict=True)
    except ValidationError as error:
        mistake = error.errors()[0]
        field = ".".join(map(str, ("payload", *mistake["loc"])))
        given = "" if mistake["type"] == "missing" else f", not {mistake['input']!r:.100}"
        kept = f"; its other columns are {listed(others)}" if mistake["type"] == "missing" and others else ""
        raise ValueError(
            f"{where}: field {field!r}: {mistake['msg']}{given}; environment {spec.name!r} needs it{kept}"
        ) from None


def _of_split(tasks: Sequence[Task], split: Split, dataset: str) -> list[Task]:
    """The tasks of a split. Which one a task is in is decided by what it asks and its payload; where that would leave a
    split empty, it gets the tasks that are nearest to it."""
    places = [place(task) for task in tasks]
    if len(set(places)) < 2:
        raise ValueError(
            f"dataset {dataset}: it has only one task, and an evaluation needs others: add rows, or name rows for the "
            "evaluation in tasks.sources.N.eval_dataset (the same file, if you only try things out)"
        )
    held_out = {one for one in places if one < EVAL_SHARE} or {min(places)}
    if held_out == set(places):
        held_out.remove(max(places))
    return [task for task, one in zip(tasks, places, strict=True) if (one in held_out) == (split == "eval")]
