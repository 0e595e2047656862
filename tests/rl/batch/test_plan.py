"""The plan of a step: what a rank builds from its part is what packing the rows themselves gives."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest

from rl.batch.micro_batch import MicroBatch, TrainRow
from rl.batch.packing import pack
from rl.batch.plan import GroupPlace, PlannedRow, RankPlan, build, plan
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
            temperatures=(1.0, 0.5),
            counts=(1, len(one) - 2),
            weight=1 / (1 + i),
        )
        for number, of_one in enumerate(groups)
        for i, one in enumerate(samples_of(of_one))
    ]


def same(first: MicroBatch, second: MicroBatch) -> bool:
    return all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(MicroBatch))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_build_what_packing_the_rows_gives_and_fetch_each_group_once(ranks: int) -> None:
    groups = some([5, 9, 3, 12, 7, 7, 4, 10])
    cards, rows = cards_of(groups), rows_of(groups)
    fetched: Counter[GroupPlace] = Counter()

    def fetch(place: GroupPlace) -> list[Sample]:
        fetched[place] += 1
        return samples_of(groups[place.address.record])

    parts = plan(cards, rows, ranks, token_budget=20, share_prefixes=False)
    direct = [
        TrainRow(
            sample=samples_of(groups[row.group])[row.sample],
            advantages=np.repeat(row.advantages, row.counts),
            temperatures=np.repeat(row.temperatures, row.counts),
            weight=row.weight,
        )
        for row in rows
    ]
    for part, expected in zip(parts, pack(direct, ranks, 20), strict=True):
        fetched.clear()
        built = build(part, fetch)
        assert len(built) == len(expected) and all(map(same, built, expected))
        assert set(fetched.values()) <= {1} and len(fetched) == len(part.groups)
        assert set(part.groups) == {row.group for planned in part.micro_batches for row in planned.rows}


def test_rows_of_a_group_share_their_prefixes_also_past_rows_that_are_not_trained() -> None:
    """In the order of their tokens, row 2 shares 3 tokens with row 0 and row 0 shares 2 with row 1. Row 0 is not
    trained, so row 2 shares 2 with row 1."""
    tokens = ([5, 6, 8, 1, 2], [5, 6, 7, 3], [5, 6, 8, 4, 4, 4], [9, 9, 9])
    made = group(*(trajectory(sample(list(one), sampled=1)) for one in tokens))
    rows = [replace(row, advantages=(1.0,), counts=(1,), temperatures=(1.0,)) for row in rows_of([made])]
    (part,) = plan(cards_of([made]), rows, 1, 20, share_prefixes=True)
    assert sharing(part) == [[(1, 0), (0, 2), (2, 3), (3, 0)]]
    assert part.tokens == 4 + 3 + 3 + 3
    (part,) = plan(cards_of([made]), rows[1:], 1, 20, share_prefixes=True)
    assert sharing(part) == [[(1, 0), (2, 2), (3, 0)]]
    (built,) = build(part, lambda place: samples_of(made))
    assert built.tokens.tolist() == [5, 6, 7, 3, 8, 4, 4, 4, 9, 9, 9]
    assert built.multiplicity.tolist() == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    (apart,) = plan(cards_of([made]), rows, 1, 20, share_prefixes=False)
    assert apart.tokens == 18 and not any(shared for batch in sharing(apart) for _, shared in batch)
    with pytest.raises(ValueError, match="row 1 does not begin with the 2 tokens"):
        other = [sample([7, 7, 7, 7, 7, 7][: len(one)]) for one in tokens]
        build(part, lambda place: [samples_of(made)[1] if i == 1 else other[i] for i in range(4)])


def sharing(part: RankPlan) -> list[list[tuple[int, int]]]:
    """Each row's sample, and the tokens that it shares."""
    return [
        [(row.sample, shared) for row, shared in zip(planned.rows, planned.shared, strict=True)]
        for planned in part.micro_batches
    ]


def test_a_rank_gets_the_reference_of_a_card_and_its_address() -> None:
    groups = some([5, 9])
    card = replace(cards_of(groups)[0], reference="reference")
    (part,) = plan([card], rows_of(groups), 1, token_budget=20, share_prefixes=True)
    assert part.groups == {0: GroupPlace(address=card.address, reference="reference")}


def test_without_rows_every_rank_has_one_empty_micro_batch() -> None:
    parts = plan([], [], 2, token_budget=8, share_prefixes=True)
    assert [[planned.rows for planned in part.micro_batches] for part in parts] == [[()], [()]]
    assert [len(build(part, samples_of)) for part in parts] == [1, 1]  # type: ignore[arg-type]


def test_a_plan_is_as_large_for_long_rows_as_for_short_ones() -> None:
    def size(length: int) -> int:
        groups = some([length] * 16)
        return len(
            pickle.dumps(plan(cards_of(groups), rows_of(groups), 2, token_budget=4 * length, share_prefixes=True))
        )

    assert size(16_384) <= 1.02 * size(1024)
