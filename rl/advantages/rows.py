"""Turn a step's cards into the rows to be packed: one row a sample, with a weight and an advantage for every token.

The weights implement the aggregation. They are computed here once for the whole step. So the step's loss is
Σ weight · token loss, however the rows are packed and over however many ranks they are spread. The cost is linear in
the trajectories, and no token is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, repeat
from typing import NamedTuple

from rewards.extension import load
from rl.advantages.common import Advantage, Advantages, PerToken, PerTurn, Scored, all_equal
from rl.advantages.config import AdvantageSettings, AggregationConfig
from rl.advantages.registry import ADVANTAGES
from rl.batch.plan import PlannedRow
from rollout.cards import Card, SampleCard, TrajectoryCard


class _Chosen(NamedTuple):
    """A trajectory that is trained, with its advantage, the number of its group, its samples with trained tokens by
    their numbers in the group, and the number of its trained tokens."""

    card: Card
    trajectory: TrajectoryCard
    advantage: Advantage
    group: int
    samples: list[tuple[int, SampleCard]]
    tokens: int

    def __str__(self) -> str:
        return f"trajectory of task {self.card.task_id} in group {self.card.id}"


def train_rows(
    cards: Sequence[Card], advantage: AdvantageSettings, aggregation: AggregationConfig, *, keep_equal: bool = False
) -> tuple[list[PlannedRow], dict[str, float]]:
    """Return the rows to pack, and the step's `rollout/groups_*` metrics (shares of all groups, 0 to 1).

    With `keep_equal` a group of equal rewards, which the estimator leaves out, is kept with advantages of 0: the loss
    has another term that wants it.

    A group is unusable if infrastructure failures leave no member, or only one of several, and the estimator leaves
    it out. It has zero variance if two or more members are left and their rewards are equal.

    Raises:
        ValueError: the number of advantages from the estimator is not that of the trajectories, turns or tokens, or
            one of them is not finite.
    """
    scored = [[_scored(member) for member in card.usable] for card in cards]
    estimated: Advantages = load(ADVANTAGES, advantage.name)(scored, advantage)
    shares = _unused(cards, scored, estimated)
    if keep_equal:
        estimated = [
            [0.0] * len(members) if values is None and len(members) > 1 else values
            for members, values in zip(scored, estimated, strict=True)
        ]
    chosen = [
        _Chosen(card, trajectory, value, number, samples, sum([sample.trained_tokens for _, sample in samples]))
        for number, (card, values) in enumerate(zip(cards, estimated, strict=True))
        if values is not None
        for (trajectory, samples), value in zip(_members(card), values, strict=True)
        if samples
    ]
    return _rows(chosen, aggregation), shares


def _scored(trajectory: TrajectoryCard) -> Scored:
    assert trajectory.reward is not None, "an infrastructure failure has no reward"
    return Scored(reward=trajectory.reward, parts=trajectory.reward_parts, turns=trajectory.turns)


def _members(card: Card) -> Iterator[tuple[TrajectoryCard, list[tuple[int, SampleCard]]]]:
    """The usable trajectories of a group, each with its samples that have trained tokens, by their numbers."""
    first = 0
    for trajectory in card.trajectories:
        if trajectory.outcome != "infra_error":
            yield trajectory, [pair for pair in enumerate(trajectory.samples, first) if pair[1].trained_tokens]
        first += len(trajectory.samples)


def _rows(chosen: Sequence[_Chosen], aggregation: AggregationConfig) -> list[PlannedRow]:
    tokens = sum(one.tokens for one in chosen)
    count = sum(len(one.samples) for one in chosen)
    rows = []
    for one in chosen:
        runs = _runs(one)
        for number, sample in one.samples:
            match aggregation.over:
                case "token":
                    weight = 1 / tokens
                case "sequence":
                    weight = 1 / (count * sample.trained_tokens)
                case "trajectory":
                    weight = 1 / (len(chosen) * one.tokens)
                case "fixed":
                    assert aggregation.length is not None, "rl.recipe.checks refuses fixed without a length"
                    weight = 1 / (len(chosen) * aggregation.length)
            advantages, temperatures, counts = zip(*runs.take(sample.trained_tokens), strict=True)
            rows.append(
                PlannedRow(
                    group=one.group,
                    sample=number,
                    length=sample.length,
                    advantages=advantages,
                    temperatures=temperatures,
                    counts=counts,
                    weight=weight,
                )
            )
    return rows


class _Run(NamedTuple):
    """Trained tokens that follow each other, with the same advantage, sampled at the same temperature."""

    advantage: float
    temperature: float
    tokens: int


class _Runs:
    """The trained tokens of a trajectory as runs, handed out sample by sample."""

    def __init__(self, runs: list[_Run]) -> None:
        self._left = runs[::-1]

    def take(self, tokens: int) -> list[_Run]:
        """The runs of the next `tokens` tokens."""
        if self._left[-1].tokens == tokens:
            return [self._left.pop()]
        taken = []
        while tokens:
            run = self._left.pop()
            if run.tokens > tokens:
                self._left.append(run._replace(tokens=run.tokens - tokens))
                run = run._replace(tokens=tokens)
            taken.append(run)
            tokens -= run.tokens
        return taken


def _runs(one: _Chosen) -> _Runs:
    trajectory, advantage = one.trajectory, one.advantage
    temperatures, lengths = trajectory.turns.temperatures, trajectory.turns.lengths
    _require_count(sum(lengths), one.tokens, one, "tokens of its turns")
    match advantage:
        case PerToken(values):
            _require_count(len(values), one.tokens, one, "trained tokens")
            each = chain.from_iterable(map(repeat, temperatures, lengths))
            runs = [_Run(float(value), at, 1) for value, at in zip(values, each, strict=True)]
        case PerTurn(values):
            _require_count(len(values), len(lengths), one, "turns")
            each_turn = zip(values, temperatures, lengths, strict=True)
            runs = [_Run(float(value), at, tokens) for value, at, tokens in each_turn]
        case _ if temperatures.count(temperatures[0]) == len(temperatures):
            runs = [_Run(float(advantage), temperatures[0], one.tokens)]
        case _:
            runs = [
                _Run(float(advantage), at, sum(tokens for _, tokens in same))
                for at, same in groupby(zip(temperatures, lengths, strict=True), key=lambda turn: turn[0])
            ]
    if not all(math.isfinite(run.advantage) for run in runs):  # it would spoil every weight of the model
        raise ValueError(f"{one}: an advantage is not finite: {[run.advantage for run in runs][:8]}")
    return _Runs([run for run in runs if run.tokens])


def _require_count(found: int, count: int, one: _Chosen, what: str) -> None:
    if found != count:
        raise ValueError(f"{one}: {what}: {count} of them, but {found} advantages")


def _unused(cards: Sequence[Card], scored: Sequence[Sequence[Scored]], estimated: Advantages) -> dict[str, float]:
    lost = sum(
        values is None and len(left) < min(2, len(card.trajectories))
        for card, left, values in zip(cards, scored, estimated, strict=True)
    )
    equal = sum(len(left) >= 2 and all_equal([member.reward for member in left]) for left in scored)
    total = max(len(cards), 1)
    return {"rollout/groups_unusable": lost / total, "rollout/groups_zero_variance": equal / total}
