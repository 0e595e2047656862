"""Samples from plain numbers, and a trajectory that an infrastructure failure ended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollout.types import SAMPLE_DTYPES, Sample, Trajectory


def sample_of(
    *, token_ids: Sequence[int], loss_mask: Sequence[int], logprobs: Sequence[float], versions: Sequence[int]
) -> Sample:
    given = {"token_ids": token_ids, "loss_mask": loss_mask, "logprobs": logprobs, "versions": versions}
    return Sample(**{name: np.array(given[name], dtype) for name, dtype in SAMPLE_DTYPES.items()})


def failed_trajectory(task_id: str, group_id: str, error: str | None = None) -> Trajectory:
    return Trajectory(
        task_id=task_id,
        group_id=group_id,
        samples=(),
        messages=(),
        stop_reason="aborted",
        outcome="infra_error",
        reward=None,
        error=error,
    )
