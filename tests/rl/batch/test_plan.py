"""The plan of a step: what a rank builds from its part is what packing the rows themselves gives."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest

from rl.batch.micro_batch import PackedBatch, TrainRow
from rl.batch.packing import pack
from rl.batch.plan import GroupPlace, PlannedRow, build, plan
from rollout.cards import samples_of
from rollout.types import Group, Sample
from tests.rollout.test_cards import group, sample, trajectory
from tests.samples import cards_of


def some(lengths: Sequence[int]) -> list[Group]:
    """Groups of two, whose samples have these lengths and, but for their first token, are sampled."""
    made = [sample(list(range(10 * i, 10 * i + n)), sampled=n - 1) for i, n in enumerate(lengths)]
    return [group(*map(trajectory, made[i : i + 2])) for i in range(0, len(made), 2)]


def rows_of(groups: Sequence[Group]) -> list[PlannedRow]:
    return [
        PlannedRow(
            group=number,
            sample=i,
            length=len(one),
            advantages=(float(number), -1.0),
            counts=(1, len(one) - 2),
            weight=1 / (1 + i),
        )
        for number, of_one in enumerate(groups)
        for i, one in enumerate(samples_of(of_one))
    ]


def same(first: PackedBatch, second: PackedBatch) -> bool:
    return all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(PackedBatch))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_build_what_packing_the_rows_gives_and_fetch_each_group_once(ranks: int) -> None:
    groups = some([5, 9, 3, 12, 7, 7, 4, 10])
    cards, rows = cards_of(groups), rows_of(groups)
    fetched: Counter[GroupPlace] = Counter()

    def fetch(place: GroupPlace) -> list[Sample]:
        fetched[place] += 1
        return samples_of(groups[place.address.record])

    parts = plan(cards, rows, ranks, token_budget=20)
    direct = [
        TrainRow(
            sample=samples_of(groups[row.group])[row.sample],
            advantages=np.repeat(row.advantages, row.counts),
            weight=row.weight,
        )
        for row in rows
    ]
    for part, expected in zip(parts, pack(direct, ranks, 20), strict=True):
        fetched.clear()
        built = build(part, fetch)
        assert len(built) == len(expected) and all(map(same, built, expected))
        assert set(fetched.values()) <= {1} and len(fetched) == len(part.groups)
        assert set(part.groups) == {row.group for rows in part.micro_batches for row in rows}


def test_a_rank_gets_the_reference_of_a_card_and_its_address() -> None:
    groups = some([5, 9])
    card = replace(cards_of(groups)[0], reference="reference")
    (part,) = plan([card], rows_of(groups), 1, token_budget=20)
    assert part.groups == {0: GroupPlace(address=card.address, reference="reference")}


def test_without_rows_every_rank_has_one_empty_micro_batch() -> None:
    parts = plan([], [], 2, token_budget=8)
    assert [part.micro_batches for part in parts] == [((),), ((),)]
    assert [len(build(part, samples_of)) for part in parts] == [1, 1]  # type: ignore[arg-type]


def test_a_plan_is_as_large_for_long_rows_as_for_short_ones() -> None:
    def size(length: int) -> int:
        groups = some([length] * 16)
        return len(pickle.dumps(plan(cards_of(groups), rows_of(groups), 2, token_budget=4 * length)))

    assert size(16_384) <= 1.02 * size(1024)
