"""Algorithms: from the rewards of a step's groups to one advantage per trajectory.

An algorithm is a function of rewards alone, one list a group, and an entry in `ALGORITHMS`; `rl.config.AlgorithmConfig`
names it. Infrastructure failures are gone before it is asked: they are neither trained nor part of any baseline
(invariant 7). Every sampled token of a trajectory, in all its samples, gets the trajectory's advantage.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from rl.batch import TrainRow
from rl.config import AlgorithmConfig
from rollout.types import Group

EPSILON = 1e-6
"""In reward units. Rewards closer together than this are equal; it also keeps the division by their spread finite."""

Rewards = Sequence[Sequence[float]]
Advantages = list[list[float] | None]
"""As the rewards; None where a group teaches nothing and leaves the loss and its denominator."""


def grpo(rewards: Rewards, normalize_std: bool) -> Advantages:
    """Reward minus the mean of its own group (Shao et al. 2024, DeepSeekMath, section 4.1.2).

    With normalize_std it is divided by the group's population standard deviation + EPSILON; without, hard and easy
    tasks weigh as their rewards do (Liu et al. 2025, Dr. GRPO). A group with fewer than two members, or whose rewards
    are all equal, has nothing to compare and gives None.
    """
    return [
        _centred(group, group, normalize_std) if len(group) >= 2 and not _all_equal(group) else None
        for group in rewards
    ]


def reinforce(rewards: Rewards, normalize_std: bool) -> Advantages:
    """Reward minus the mean over the whole step (Williams 1992, with a batch-mean baseline), for any group size.

    With normalize_std it is divided by the step's population standard deviation + EPSILON (as in REINFORCE++,
    Hu 2025). Where all rewards of the step are equal, every group gives None.
    """
    everything = [reward for group in rewards for reward in group]
    if not everything or _all_equal(everything):
        return [None for _ in rewards]
    return [_centred(group, everything, normalize_std) if group else None for group in rewards]


ALGORITHMS: dict[str, Callable[[Rewards, bool], Advantages]] = {"grpo": grpo, "reinforce": reinforce}


def train_rows(groups: Sequence[Group], config: AlgorithmConfig) -> tuple[list[TrainRow], dict[str, float]]:
    """The rows to pack, and the step's `rollout/groups_*` metrics (shares of all groups, 0 to 1).

    A group counts as unusable where infrastructure failures left fewer than two members of several, or none at all;
    as zero-variance where two or more are left and their rewards are equal.
    """
    rewards = [[t.reward for t in group.usable if t.reward is not None] for group in groups]
    rows = [
        TrainRow(sample=sample, advantage=advantage)
        for group, advantages in zip(groups, ALGORITHMS[config.name](rewards, config.normalize_std), strict=True)
        if advantages is not None
        for trajectory, advantage in zip(group.usable, advantages, strict=True)
        for sample in trajectory.samples
        if sample.trained_tokens
    ]
    unusable = sum(len(r) < min(2, len(g.trajectories)) for g, r in zip(groups, rewards, strict=True))
    zero_variance = sum(len(r) >= 2 and _all_equal(r) for r in rewards)
    total = max(len(groups), 1)
    return rows, {"rollout/groups_unusable": unusable / total, "rollout/groups_zero_variance": zero_variance / total}


def _centred(rewards: Sequence[float], baseline: Sequence[float], normalize_std: bool) -> list[float]:
    mean = statistics.fmean(baseline)
    scale = statistics.pstdev(baseline) + EPSILON if normalize_std else 1.0
    return [(reward - mean) / scale for reward in rewards]


def _all_equal(rewards: Sequence[float]) -> bool:
    return max(rewards) - min(rewards) < EPSILON
