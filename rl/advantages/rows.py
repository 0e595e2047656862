"""Turn a step's cards into the rows to be packed: one row a sample, with a weight and an advantage for every token.

The weights implement the aggregation. They are computed here once for the whole step. So the step's loss is
Σ weight · token loss, however the rows are packed and over however many ranks they are spread. The cost is linear in
the trajectories, and no token is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rewards.extension import load
from rl.advantages.common import Advantage, Advantages, PerToken, PerTurn, Scored, all_equal
from rl.advantages.config import AdvantageSettings, AggregationConfig
from rl.advantages.registry import ADVANTAGES
from rl.batch.plan import PlannedRow
from rollout.cards import Card, SampleCard, TrajectoryCard


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A trajectory that is trained, with its advantage, the number of its group, and that of its first sample."""

    card: Card
    trajectory: TrajectoryCard
    advantage: Advantage
    group: int
    first: int

    def samples(self) -> list[tuple[int, SampleCard]]:
        """Its samples with trained tokens, by their numbers in the group."""
        return [(self.first + i, sample) for i, sample in enumerate(self.trajectory.samples) if sample.trained_tokens]


def train_rows(
    cards: Sequence[Card], advantage: AdvantageSettings, aggregation: AggregationConfig
) -> tuple[list[PlannedRow], dict[str, float]]:
    """Return the rows to pack, and the step's `rollout/groups_*` metrics (shares of all groups, 0 to 1).

    Infrastructure failures make a group unusable if they leave no member, or only one of several. A group has zero
    variance if two or more members are left and their rewards are equal.

    Raises:
        ValueError: the number of advantages from the estimator is not that of the trajectories, turns or tokens, or
            one of them is not finite.
    """
    scored = [[_scored(member) for member in card.usable] for card in cards]
    estimated: Advantages = load(ADVANTAGES, advantage.name)(scored, advantage)
    chosen = [
        _Chosen(card, trajectory, value, number, first)
        for number, (card, values) in enumerate(zip(cards, estimated, strict=True))
        if values is not None
        for (first, trajectory), value in zip(_numbered(card), values, strict=True)
    ]
    return _rows([one for one in chosen if one.trajectory.trained_tokens], aggregation), _unused(cards, scored)


def _scored(trajectory: TrajectoryCard) -> Scored:
    assert trajectory.reward is not None, "an infrastructure failure has no reward"
    return Scored(reward=trajectory.reward, parts=trajectory.reward_parts, turns=trajectory.turns)


def _numbered(card: Card) -> Iterator[tuple[int, TrajectoryCard]]:
    """The usable trajectories of a group, each with the number of its first sample."""
    first = 0
    for trajectory in card.trajectories:
        if trajectory.outcome != "infra_error":
            yield first, trajectory
        first += len(trajectory.samples)


def _rows(chosen: Sequence[_Chosen], aggregation: AggregationConfig) -> list[PlannedRow]:
    tokens = sum(one.trajectory.trained_tokens for one in chosen)
    count = sum(len(one.samples()) for one in chosen)
    rows = []
    for one in chosen:
        runs = _runs(one)
        for number, sample in one.samples():
            match aggregation.over:
                case "token":
                    weight = 1 / tokens
                case "sequence":
                    weight = 1 / (count * sample.trained_tokens)
                case "trajectory":
                    weight = 1 / (len(chosen) * one.trajectory.trained_tokens)
                case "fixed":
                    assert aggregation.length is not None, "rl.recipe.checks refuses fixed without a length"
                    weight = 1 / (len(chosen) * aggregation.length)
            own = runs.take(sample.trained_tokens)
            rows.append(
                PlannedRow(
                    group=one.group,
                    sample=number,
                    length=sample.length,
                    advantages=tuple(value for value, _ in own),
                    counts=tuple(length for _, length in own),
                    weight=weight,
                )
            )
    return rows


class _Runs:
    """Advantages of a trajectory's trained tokens as runs of equal values, handed out sample by sample."""

    def __init__(self, values: Sequence[float], counts: Sequence[int]) -> None:
        self._left = [(float(value), count) for value, count in zip(values, counts, strict=True) if count][::-1]

    def take(self, tokens: int) -> list[tuple[float, int]]:
        """The runs of the next `tokens` tokens."""
        taken = []
        while tokens:
            value, count = self._left.pop()
            if count > tokens:
                self._left.append((value, count - tokens))
            taken.append((value, min(count, tokens)))
            tokens -= taken[-1][1]
        return taken


def _runs(one: _Chosen) -> _Runs:
    trajectory, advantage = one.trajectory, one.advantage
    what = f"trajectory of task {one.card.task_id} in group {one.card.id}"
    values: Sequence[float]
    counts: Sequence[int]
    match advantage:
        case PerToken(values):
            _require_count(len(values), trajectory.trained_tokens, f"{what}: trained tokens")
            counts = [1] * len(values)
        case PerTurn(values):
            _require_count(len(values), len(trajectory.turns), f"{what}: turns")
            counts = [len(turn) for turn in trajectory.turns]
            _require_count(sum(counts), trajectory.trained_tokens, f"{what}: tokens of its turns")
        case _:
            values, counts = [advantage], [trajectory.trained_tokens]
    if not all(map(math.isfinite, values)):  # it would spoil every weight of the model
        raise ValueError(f"{what}: an advantage is not finite: {list(values)[:8]}")
    return _Runs(values, counts)


def _require_count(found: int, count: int, what: str) -> None:
    if found != count:
        raise ValueError(f"{what}: {count} of them, but {found} advantages")


def _unused(cards: Sequence[Card], scored: Sequence[Sequence[Scored]]) -> dict[str, float]:
    lost = sum(len(left) < min(2, len(card.trajectories)) for card, left in zip(cards, scored, strict=True))
    equal = sum(len(left) >= 2 and all_equal([member.reward for member in left]) for left in scored)
    total = max(len(cards), 1)
    return {"rollout/groups_unusable": lost / total, "rollout/groups_zero_variance": equal / total}
