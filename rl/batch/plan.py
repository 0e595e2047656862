"""The plan of a step: which samples each rank trains, in which micro-batches, with which advantages and weights.

The driver makes it from cards, without a token. Each rank then fetches the samples that its part names, and lays them
out (`build`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl.batch.micro_batch import PackedBatch, TrainRow, concatenate, filler
from rl.batch.packing import assign
from rollout.cards import Card
from rollout.types import Address, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRow:
    """One sample to train: number `sample` of group number `group`.

    Its trained tokens have the advantages `advantages`, each for as many of them as `counts` says, in order.
    """

    group: int
    sample: int
    length: int
    advantages: tuple[float, ...]
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
class RankPlan:
    """One rank's part of a step. `groups` maps the group numbers of its rows to places. A micro-batch may be empty."""

    groups: dict[int, GroupPlace]
    micro_batches: tuple[tuple[PlannedRow, ...], ...]


def plan(cards: Sequence[Card], rows: Sequence[PlannedRow], ranks: int, token_budget: int) -> list[RankPlan]:
    """Spread the rows of a step over ranks and micro-batches (`rl.batch.packing.assign`)."""
    return [
        _rank_plan(cards, [tuple(rows[i] for i in members) for members in of_rank])
        for of_rank in assign([len(row) for row in rows], ranks, token_budget)
    ]


def build(part: RankPlan, fetch: Callable[[GroupPlace], Sequence[Sample]]) -> list[PackedBatch]:
    """Lay out one rank's micro-batches. `fetch` returns the samples of a group by their numbers; it is called once for
    each group."""
    samples = {number: fetch(place) for number, place in part.groups.items()}
    return [
        concatenate([_train_row(row, samples[row.group][row.sample]) for row in rows]) if rows else filler()
        for rows in part.micro_batches
    ]


def _rank_plan(cards: Sequence[Card], micro_batches: Sequence[tuple[PlannedRow, ...]]) -> RankPlan:
    numbers = sorted({row.group for rows in micro_batches for row in rows})
    places = {
        number: GroupPlace(address=cards[number].address, reference=cards[number].reference) for number in numbers
    }
    return RankPlan(groups=places, micro_batches=tuple(micro_batches))


def _train_row(row: PlannedRow, sample: Sample) -> TrainRow:
    return TrainRow(sample=sample, advantages=np.repeat(row.advantages, row.counts), weight=row.weight)
