"""Turn a step's groups into the rows to be packed: one row a sample, with a weight and an advantage for every token.

The weights implement the aggregation. They are computed here once for the whole step. So the step's loss is
Σ weight · token loss, however the rows are packed and over however many ranks they are spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rewards.extension import load
from rl.advantages.common import Advantage, Advantages, PerToken, PerTurn, Scored, all_equal
from rl.advantages.config import AdvantageSettings, AggregationConfig
from rl.advantages.registry import ADVANTAGES
from rl.batch.micro_batch import TrainRow
from rollout.types import Group, Trajectory


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A trajectory that is trained, with its advantage."""

    trajectory: Trajectory
    advantage: Advantage

    @property
    def trained_tokens(self) -> int:
        return sum(sample.trained_tokens for sample in self.trajectory.samples)


def train_rows(
    groups: Sequence[Group], advantage: AdvantageSettings, aggregation: AggregationConfig
) -> tuple[list[TrainRow], dict[str, float]]:
    """Return the rows to pack, and the step's `rollout/groups_*` metrics (shares of all groups, 0 to 1).

    Infrastructure failures make a group unusable if they leave no member, or only one of several. A group has zero
    variance if two or more members are left and their rewards are equal.

    Raises:
        ValueError: the number of advantages from the estimator is not that of the trajectories, turns or tokens, or
            one of them is not finite.
    """
    scored = [[_scored(member) for member in group.usable] for group in groups]
    estimated: Advantages = load(ADVANTAGES, advantage.name)(scored, advantage)
    chosen = [
        _Chosen(trajectory, value)
        for group, values in zip(groups, estimated, strict=True)
        if values is not None
        for trajectory, value in zip(group.usable, values, strict=True)
    ]
    return _rows([one for one in chosen if one.trained_tokens], aggregation), _unused(groups, scored)


def _scored(trajectory: Trajectory) -> Scored:
    assert trajectory.reward is not None, "an infrastructure failure has no reward"
    return Scored(reward=trajectory.reward, parts=trajectory.reward_parts, turns=trajectory.turns)


def _rows(chosen: Sequence[_Chosen], aggregation: AggregationConfig) -> list[TrainRow]:
    samples = [[sample for sample in one.trajectory.samples if sample.trained_tokens] for one in chosen]
    tokens = sum(one.trained_tokens for one in chosen)
    count = sum(len(of_one) for of_one in samples)
    rows = []
    for one, of_one in zip(chosen, samples, strict=True):
        advantages = _spread(one)
        for sample in of_one:
            match aggregation.over:
                case "token":
                    weight = 1 / tokens
                case "sequence":
                    weight = 1 / (count * sample.trained_tokens)
                case "trajectory":
                    weight = 1 / (len(chosen) * one.trained_tokens)
                case "fixed":
                    assert aggregation.length is not None, "rl.recipe.checks refuses fixed without a length"
                    weight = 1 / (len(chosen) * aggregation.length)
            own, advantages = advantages[: sample.trained_tokens], advantages[sample.trained_tokens :]
            rows.append(TrainRow(sample=sample, advantages=own, weight=weight))
    return rows


def _spread(one: _Chosen) -> npt.NDArray[np.float64]:
    """One advantage for each trained token of the trajectory, sample after sample."""
    trajectory, advantage = one.trajectory, one.advantage
    what = f"trajectory of task {trajectory.task_id} in group {trajectory.group_id}"
    match advantage:
        case PerToken(values):
            _require_count(values, one.trained_tokens, f"{what}: trained tokens")
            spread = np.asarray(values, np.float64)
        case PerTurn(values):
            _require_count(values, len(trajectory.turns), f"{what}: turns")
            spread = np.repeat(np.asarray(values, np.float64), [len(turn) for turn in trajectory.turns])
            _require_count(spread, one.trained_tokens, f"{what}: tokens of its turns")
        case _:
            spread = np.full(one.trained_tokens, advantage, np.float64)
    if not np.isfinite(spread).all():  # it would spoil every weight of the model
        raise ValueError(f"{what}: an advantage is not finite: {spread[:8].tolist()}")
    return spread


def _require_count(values: Sequence[float] | npt.NDArray[np.float64], count: int, what: str) -> None:
    if len(values) != count:
        raise ValueError(f"{what}: {count} of them, but {len(values)} advantages")


def _unused(groups: Sequence[Group], scored: Sequence[Sequence[Scored]]) -> dict[str, float]:
    lost = sum(len(left) < min(2, len(group.trajectories)) for group, left in zip(groups, scored, strict=True))
    equal = sum(len(left) >= 2 and all_equal([member.reward for member in left]) for left in scored)
    total = max(len(groups), 1)
    return {"rollout/groups_unusable": lost / total, "rollout/groups_zero_variance": equal / total}
