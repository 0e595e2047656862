"""Groups as gzipped JSON lines. Run directories keep every step's groups in this form, checkpoints the buffer's."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from rollout.types import SAMPLE_DTYPES, Group, Sample, Span, Task, Trajectory, Turn


def encode_groups(groups: Iterable[Group]) -> bytes:
    """Encode groups as gzipped JSON, one object a line. Equal groups give equal bytes.

    The JSON is ASCII, because a policy may write a lone surrogate, which UTF-8 cannot encode.
    """
    lines = "".join(json.dumps(asdict(group), default=np.ndarray.tolist) + "\n" for group in groups)
    return gzip.compress(lines.encode(), compresslevel=3, mtime=0)


def decode_groups(content: bytes) -> list[Group]:
    """Return the groups that `encode_groups` was given."""
    return [_group(json.loads(line)) for line in gzip.decompress(content).decode().split("\n") if line]


def _group(row: dict[str, Any]) -> Group:
    trajectories = tuple(_trajectory(member) for member in row["trajectories"])
    task = row["task"]
    return Group(id=row["id"], task=Task(**task | {"messages": tuple(task["messages"])}), trajectories=trajectories)


def _trajectory(row: dict[str, Any]) -> Trajectory:
    samples = tuple(
        Sample(**{name: np.array(sample[name], dtype) for name, dtype in SAMPLE_DTYPES.items()})
        for sample in row["samples"]
    )
    spans = tuple(Span(**span) for span in row["spans"])
    turns = tuple(Turn(**turn) for turn in row["turns"])
    return Trajectory(**row | {"samples": samples, "spans": spans, "turns": turns, "messages": tuple(row["messages"])})
