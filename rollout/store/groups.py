"""Groups as an Arrow IPC stream: one group is one record batch, one trajectory one row.

Run directories keep every step's groups in this form, checkpoints the buffer's. `datasets.Dataset.from_file` opens such
a file too. The arrays of the samples are columns, and so are the reward, the success and what ended the trajectory.
Everything else is JSON text, which also holds what Arrow's UTF-8 strings cannot, such as a lone surrogate that a policy
wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout.types import SAMPLE_DTYPES, Group, Sample, Span, Task, Trajectory, Turn

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSION = "zstd"
_JSON = ("messages", "reward_parts", "turns", "error", "spans", "metrics")
"""The fields of a trajectory that are kept as JSON."""


def encode_groups(groups: Iterable[Group]) -> bytes:
    """Encode groups as an Arrow IPC stream. Equal groups give equal bytes.

    Raises:
        ValueError: a group has no trajectories.
    """
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=COMPRESSION)
    with pa.ipc.new_stream(sink, _schema(), options=options) as stream:
        for group in groups:
            stream.write_batch(_batch(group))
    content: bytes = sink.getvalue().to_pybytes()
    return content


def decode_groups(content: bytes) -> list[Group]:
    """Return the groups that `encode_groups` was given. Their arrays are views of one buffer for each group."""
    import pyarrow as pa

    with pa.ipc.open_stream(content) as stream:
        return [_group(batch) for batch in stream]


@cache
def _schema() -> pa.Schema:
    import pyarrow as pa

    sample = pa.struct([(name, pa.list_(pa.from_numpy_dtype(dtype))) for name, dtype in SAMPLE_DTYPES.items()])
    return pa.schema(
        [
            ("group_id", pa.string()),
            ("stop_reason", pa.string()),
            ("outcome", pa.string()),
            ("reward", pa.float64()),
            ("success", pa.bool_()),
            ("samples", pa.list_(sample)),
            *((name, pa.string()) for name in ("task", *_JSON)),
        ]
    )


def _batch(group: Group) -> pa.RecordBatch:
    import pyarrow as pa

    members = group.trajectories
    if not members:
        raise ValueError(f"group {group.id} has no trajectories: there is nothing to keep")
    columns: dict[str, Any] = {
        "group_id": [group.id] * len(members),
        "stop_reason": [member.stop_reason for member in members],
        "outcome": [member.outcome for member in members],
        "reward": [member.reward for member in members],
        "success": [member.success for member in members],
        "samples": _samples([member.samples for member in members]),
        "task": [json.dumps(asdict(group.task))] * len(members),
    }
    for name in _JSON:
        columns[name] = [json.dumps(getattr(member, name), default=asdict) for member in members]
    return pa.RecordBatch.from_pydict(columns, schema=_schema())


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


def _group(batch: pa.RecordBatch) -> Group:
    rows = batch.drop_columns(["samples"]).to_pylist()
    first = rows[0]
    task = json.loads(first["task"])
    trajectories = tuple(
        _trajectory(row, task["id"], samples)
        for row, samples in zip(rows, _samples_of(batch.column("samples")), strict=True)
    )
    task["messages"] = tuple(task["messages"])
    return Group(id=first["group_id"], task=Task(**task), trajectories=trajectories)


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
