"""What an advantage estimator is given, what it returns, and the arithmetic that estimators share.

An estimator is a function `(groups, settings) -> advantages`. It sees rewards and turns, never a token, so it runs in
the driver without touching the data that is trained. Infrastructure failures are gone before it is asked: they are
neither trained nor part of any baseline.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rl.advantages.config import AdvantageSettings
from rollout.types import Turn

EPSILON = 1e-6
"""In reward units. Rewards closer together than this are equal; it also keeps the division by their spread finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One trajectory as an estimator sees it: its total reward, the parts of it, and its turns in order."""

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class PerTurn:
    """One advantage for each turn of a trajectory, in order: every token sampled in the turn gets it."""

    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class PerToken:
    """One advantage for each trained token of a trajectory, in order, sample after sample."""

    values: Sequence[float]


Advantage = float | PerTurn | PerToken
"""A number is every trained token's of the trajectory, in all its samples."""

Advantages = list[list[Advantage] | None]
"""One list a group, one entry a trajectory; None where a group teaches nothing and leaves the loss."""


class Estimator(Protocol):
    """From the trajectories of a step, group by group, to their advantages. Cost must grow linearly with them."""

    def __call__(self, groups: Sequence[Sequence[Scored]], settings: AdvantageSettings) -> Advantages: ...


@dataclass(frozen=True, slots=True)
class Baseline:
    """What rewards are compared with: their mean, and the scale that the difference is divided by."""

    mean: float
    scale: float

    @classmethod
    def of(cls, rewards: Sequence[float], normalize_std: bool) -> Baseline:
        """With normalize_std the scale is the population standard deviation (divided by n, not n - 1) + EPSILON."""
        return cls(statistics.fmean(rewards), statistics.pstdev(rewards) + EPSILON if normalize_std else 1.0)

    def advantage(self, reward: float) -> float:
        return (reward - self.mean) / self.scale


def all_equal(rewards: Sequence[float]) -> bool:
    """Whether there is nothing to compare. Rounding noise over a tiny deviation would look like a signal."""
    return max(rewards) - min(rewards) < EPSILON


def require_finite(advantages: Sequence[float], what: str) -> None:
    """Raises ValueError for an advantage that is not a number: it would poison every weight of the model."""
    if not all(math.isfinite(value) for value in advantages):
        raise ValueError(f"{what}: an advantage is not finite: {list(advantages)[:8]}")
