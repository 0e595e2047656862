"""From a step's groups to the rows that are packed and trained."""

from __future__ import annotations

from collections.abc import Sequence

from rl.advantages.common import all_equal
from rl.advantages.config import AlgorithmConfig
from rl.advantages.registry import ALGORITHMS
from rl.batch.micro_batch import TrainRow
from rollout.types import Group


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
    zero_variance = sum(len(r) >= 2 and all_equal(r) for r in rewards)
    total = max(len(groups), 1)
    return rows, {"rollout/groups_unusable": unusable / total, "rollout/groups_zero_variance": zero_variance / total}
