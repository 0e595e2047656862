"""The input and the return type of advantage estimators, and the arithmetic that they share.

An estimator is a function `(groups, settings) -> advantages`. It sees rewards and turns, never a token, so it runs in
the driver without touching the data that is trained. Infrastructure failures are removed before it is called: they are
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
"""In reward units. Rewards that differ by less count as equal. It also keeps the division by their deviation finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One trajectory as an estimator sees it: its total reward, the parts of it, and its turns in order."""

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    turns: Sequence[Turn] = ()


@dataclass(frozen=True, slots=True)
class PerTurn:
    """One advantage for each turn of a trajectory, in order: every token sampled in the turn gets it."""

    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class PerToken:
    """One advantage for each trained token of a trajectory, in order, sample after sample."""

    values: Sequence[float]


Advantage = float | PerTurn | PerToken
"""A plain number applies to every trained token of the trajectory, in all its samples."""

Advantages = list[list[Advantage] | None]
"""One list a group, with one entry a trajectory; None for a group that is left out of the loss."""


class Estimator(Protocol):
    """Computes the advantages of a step's trajectories, which come group by group. The cost must be linear in them."""

    def __call__(self, groups: Sequence[Sequence[Scored]], settings: AdvantageSettings) -> Advantages: ...


@dataclass(frozen=True, slots=True)
class Baseline:
    """The mean that rewards are compared with, and the scale that the difference is divided by."""

    mean: float
    scale: float

    @classmethod
    def of(cls, rewards: Sequence[float], normalize_std: bool) -> Baseline:
        """The baseline of `rewards`. With normalize_std the scale is their population standard deviation (divided by
        n, not n - 1) + EPSILON, else 1."""
        mean, count = statistics.fmean(rewards), len(rewards)
        return cls(mean, math.dist(rewards, [mean] * count) / math.sqrt(count) + EPSILON if normalize_std else 1.0)

    def advantage(self, reward: float) -> float:
        return (reward - self.mean) / self.scale


def all_equal(rewards: Sequence[float]) -> bool:
    """Whether the rewards differ by less than EPSILON. Rounding noise, divided by its own tiny deviation, would look
    like a signal."""
    return max(rewards) - min(rewards) < EPSILON
