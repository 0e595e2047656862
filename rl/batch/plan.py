"""The plan of a step: which samples each rank trains, in which micro-batches, with which advantages and weights.

The driver makes it from cards, without a token. Each rank then fetches the samples that its part names, and lays them
out (`build`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from rl.batch.micro_batch import MicroBatch, TrainRow, lay_out
from rl.batch.packing_trees import Tree, assign_trees
from rollout.cards import Card, Light
from rollout.types import Address, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRow(Light):
    """One sample to train: number `sample` of group number `group`.

    Its trained tokens come in runs, in order: `counts` tokens each, with equal `advantages` and `temperatures`.
    """

    group: int
    sample: int
    length: int
    advantages: tuple[float, ...]
    temperatures: tuple[float, ...]
    counts: tuple[int, ...]
    weight: float
    """The weight of every trained token in the step's loss. It implements the aggregation (rl.advantages.rows)."""

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlace:
    """Where the samples of a group are: `rollout.cards.Card` says what the two are."""

    address: Address
    reference: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch(Light):
    """A micro-batch: its rows, maybe none, and for each the number of tokens that it begins with and that are computed
    for the row before it."""

    rows: tuple[PlannedRow, ...]
    shared: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return sum(map(len, self.rows)) - sum(self.shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's part of a step. `groups` maps the group numbers of its rows to places."""

    groups: dict[int, GroupPlace]
    micro_batches: tuple[PlannedBatch, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return sum(batch.tokens for batch in self.micro_batches)


def plan(
    cards: Sequence[Card], rows: Sequence[PlannedRow], ranks: int, token_budget: int, *, share_prefixes: bool
) -> list[RankPlan]:
    """Spread the rows of a step over ranks and micro-batches (`rl.batch.packing_trees.assign_trees`).

    With `share_prefixes` the rows of a group that share a micro-batch have the tokens that they begin with in common.
    """
    trees = list(_trees(cards, rows) if share_prefixes else _single(rows))
    return [
        _rank_plan(cards, [_planned(rows, members) for members in of_rank])
        for of_rank in assign_trees(trees, ranks, token_budget)
    ]


def build(part: RankPlan, fetch: Callable[[GroupPlace], Sequence[Sample]]) -> list[MicroBatch]:
    """Lay out one rank's micro-batches. `fetch` returns the samples of a group by their numbers; it is called once for
    each group."""
    samples = {number: fetch(place) for number, place in part.groups.items()}
    return [
        lay_out([_train_row(row, samples[row.group][row.sample]) for row in batch.rows], batch.shared)
        for batch in part.micro_batches
    ]


def _single(rows: Sequence[PlannedRow]) -> Iterator[Tree]:
    for number, row in enumerate(rows):
        yield Tree([number], [row.length], [0])


def _trees(cards: Sequence[Card], rows: Sequence[PlannedRow]) -> Iterator[Tree]:
    """One tree for each group with rows. `rows` come group by group."""
    for group, members in groupby(enumerate(rows), key=lambda numbered: numbered[1].group):
        by_sample = {row.sample: number for number, row in members}
        samples = [sample for trajectory in cards[group].trajectories for sample in trajectory.samples]
        order, shared, common = [], [], 0
        for sample in sorted(range(len(samples)), key=lambda i: samples[i].rank):
            common = min(common, samples[sample].shared)
            if sample in by_sample:
                order.append(by_sample[sample])
                shared.append(common)
                common = samples[sample].length
        yield Tree(order, [rows[number].length for number in order], shared)


def _planned(rows: Sequence[PlannedRow], trees: Sequence[Tree]) -> PlannedBatch:
    return PlannedBatch(
        rows=tuple(rows[number] for tree in trees for number in tree.rows),
        shared=tuple(shared for tree in trees for shared in (0, *tree.shared[1:])),
    )


def _rank_plan(cards: Sequence[Card], micro_batches: Sequence[PlannedBatch]) -> RankPlan:
    numbers = sorted({row.group for batch in micro_batches for row in batch.rows})
    groups = {i: GroupPlace(address=cards[i].address, reference=cards[i].reference) for i in numbers}
    return RankPlan(groups=groups, micro_batches=tuple(micro_batches))


def _train_row(row: PlannedRow, sample: Sample) -> TrainRow:
    return TrainRow(
        sample=sample,
        advantages=np.repeat(row.advantages, row.counts),
        temperatures=np.repeat(row.temperatures, row.counts),
        weight=row.weight,
    )
