"""Groups as Arrow record batches: one group is one batch, one trajectory one row.

The arrays of the samples are columns, and so are the reward, the success and what ended the trajectory. Everything else
is JSON text, which also holds what Arrow's UTF-8 strings cannot, such as a lone surrogate that a policy wrote. No
column is dictionary-encoded, so a batch can be read without the batches before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout.store import streams
from rollout.types import SAMPLE_DTYPES, Group, Sample, Span, Split, Task, Trajectory, Turn

if TYPE_CHECKING:
    import pyarrow as pa

_JSON = ("messages", "reward_parts", "turns", "error", "spans", "metrics")
"""The fields of a trajectory that are kept as JSON."""


def encode(group: Group, split: Split) -> bytes:
    """Encode a group as one record batch message of an Arrow IPC stream (`header`). Equal groups give equal bytes.

    Raises:
        ValueError: the group has no trajectories.
    """
    return streams.message(_batch(group, split))


@cache
def header() -> bytes:
    """The schema message, with which a stream of encoded groups begins."""
    return streams.header(schema())


def decode(batch: pa.RecordBatch) -> tuple[Group, Split]:
    """Return what `encode` was given. The arrays are views of the batch."""
    rows = batch.drop_columns(["samples"]).to_pylist()
    first = rows[0]
    task = task_of(json.loads(first["task"]))
    samples = _samples_of(batch.column("samples"))
    trajectories = tuple(_trajectory(row, task.id, own) for row, own in zip(rows, samples, strict=True))
    return Group(id=first["group_id"], task=task, trajectories=trajectories), first["split"]


def task_of(values: Mapping[str, Any]) -> Task:
    """The task that `dataclasses.asdict` made `values` of, also after they went through JSON."""
    return Task(**{**values, "messages": tuple(values["messages"])})


@cache
def schema() -> pa.Schema:
    import pyarrow as pa

    sample = pa.struct([(name, pa.list_(pa.from_numpy_dtype(dtype))) for name, dtype in SAMPLE_DTYPES.items()])
    return pa.schema(
        [
            ("group_id", pa.string()),
            ("split", pa.string()),
            ("stop_reason", pa.string()),
            ("outcome", pa.string()),
            ("reward", pa.float64()),
            ("success", pa.bool_()),
            ("samples", pa.list_(sample)),
            *((name, pa.string()) for name in ("task", *_JSON)),
        ]
    )


def _batch(group: Group, split: Split) -> pa.RecordBatch:
    import pyarrow as pa

    members = group.trajectories
    if not members:
        raise ValueError(f"group {group.id} has no trajectories: there is nothing to keep")
    columns: dict[str, Any] = {
        "group_id": [group.id] * len(members),
        "split": [split] * len(members),
        "stop_reason": [member.stop_reason for member in members],
        "outcome": [member.outcome for member in members],
        "reward": [member.reward for member in members],
        "success": [member.success for member in members],
        "samples": _samples([member.samples for member in members]),
        "task": [json.dumps(asdict(group.task))] * len(members),
    }
    for name in _JSON:
        columns[name] = [json.dumps(getattr(member, name), default=asdict) for member in members]
    return pa.RecordBatch.from_pydict(columns, schema=schema())


def _samples(rows: Sequence[Sequence[Sample]]) -> pa.ListArray:
    import pyarrow as pa

    samples = [sample for row in rows for sample in row]
    arrays = []
    for name, dtype in SAMPLE_DTYPES.items():
        values = np.concatenate([np.zeros(0, dtype), *(getattr(sample, name) for sample in samples)])
        arrays.append(pa.ListArray.from_arrays(_offsets(samples), values))
    return pa.ListArray.from_arrays(_offsets(rows), pa.StructArray.from_arrays(arrays, list(SAMPLE_DTYPES)))


def _offsets(parts: Sequence[Any]) -> pa.Array:
    """Where each part begins and the last one ends when they are laid end to end."""
    import pyarrow as pa

    return pa.array([0, *accumulate(len(part) for part in parts)], pa.int32())


def _samples_of(column: pa.ListArray) -> list[tuple[Sample, ...]]:
    structs = column.flatten()
    arrays = {}
    for name in SAMPLE_DTYPES:
        lists = structs.field(name)
        arrays[name] = np.split(lists.values.to_numpy(), lists.offsets.to_numpy()[1:-1])
    samples = [Sample(**{name: arrays[name][i] for name in arrays}) for i in range(len(structs))]
    ends = column.offsets.to_pylist()
    return [tuple(samples[start:end]) for start, end in pairwise(ends)]


def _trajectory(row: dict[str, Any], task_id: str, samples: tuple[Sample, ...]) -> Trajectory:
    given = {name: json.loads(row[name]) for name in _JSON}
    return Trajectory(
        task_id=task_id,
        group_id=row["group_id"],
        samples=samples,
        messages=tuple(given["messages"]),
        stop_reason=row["stop_reason"],
        outcome=row["outcome"],
        reward=row["reward"],
        success=row["success"],
        reward_parts=given["reward_parts"],
        turns=tuple(Turn(**turn) for turn in given["turns"]),
        error=given["error"],
        spans=tuple(Span(**span) for span in given["spans"]),
        metrics=given["metrics"],
    )
