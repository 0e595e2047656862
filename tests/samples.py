"""Samples from plain numbers, a trajectory that an infrastructure failure ended, and cards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollout.cards import Card, card_of
from rollout.types import SAMPLE_DTYPES, Address, Group, Sample, Trajectory


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


def cards_of(groups: Sequence[Group]) -> list[Card]:
    """The cards of groups that lie in one segment in this order."""
    return [card_of(group, Address(segment=1, record=record)) for record, group in enumerate(groups)]
