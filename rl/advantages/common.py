"""What advantage estimators share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

EPSILON = 1e-6
"""In reward units. Rewards closer together than this are equal; it also keeps the division by their spread finite."""

Rewards = Sequence[Sequence[float]]

Advantages = list[list[float] | None]
"""As the rewards; None where a group teaches nothing and leaves the loss and its denominator."""


def centred(rewards: Sequence[float], baseline: Sequence[float], normalize_std: bool) -> list[float]:
    mean = statistics.fmean(baseline)
    scale = statistics.pstdev(baseline) + EPSILON if normalize_std else 1.0
    return [(reward - mean) / scale for reward in rewards]


def all_equal(rewards: Sequence[float]) -> bool:
    return max(rewards) - min(rewards) < EPSILON
