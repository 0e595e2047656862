"""Packing: every token once, aligned with the position that predicts it, within budget, in lockstep, balanced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.batch.micro_batch import MicroBatch, SftRow, TrainRow, filler, lay_out
from rl.batch.packing import _fitted, _longest_to_fullest, assign, pack
from rl.batch.tree import Segment
from rollout.types import OBSERVED, Sample
from tests.samples import sample_of

BUDGET = 32


def sample(tokens: list[int], mask: list[int], version: int = 3) -> Sample:
    return sample_of(
        token_ids=tuple(tokens),
        loss_mask=tuple(mask),
        logprobs=tuple(-0.5 * t * m for t, m in zip(tokens, mask, strict=True)),
        versions=tuple(version if m else OBSERVED for m in mask),
    )


@st.composite
def train_rows(draw: st.DrawFn) -> list[TrainRow]:
    """Rows whose token ids are unique over the whole list, so that a token can be followed through packing."""
    rows, next_token = [], 1
    for length in draw(st.lists(st.integers(1, BUDGET), max_size=20)):
        mask = [0, *draw(st.lists(st.integers(0, 1), min_size=length - 1, max_size=length - 1))]
        tokens = list(range(next_token, next_token + length))
        made = sample(tokens, mask, version=length % 5)
        advantages = np.array(tokens, np.float64)[np.array(mask) > 0]
        rows.append(TrainRow(sample=made, advantages=advantages, weight=float(len(rows) + 1)))
        next_token += length
    return rows


def is_filler(batch: MicroBatch) -> bool:
    return not batch.multiplicity.any()


def size(batch: MicroBatch) -> int:
    return 0 if is_filler(batch) else len(batch)


def test_packed_rows_by_hand() -> None:
    rows = [
        TrainRow(
            sample=sample([10, 11, 12, 13], [0, 1, 0, 1], version=7),
            advantages=np.array([-2.0, 3.0]),
            weight=0.25,
            temperatures=np.array([0.5, 2.0]),
        ),
        TrainRow(sample=sample([20, 21], [0, 1], version=8), advantages=np.array([0.5]), weight=0.5),
    ]
    [[batch]] = pack(rows, ranks=1, token_budget=8)
    assert batch.tokens.tolist() == [10, 11, 12, 13, 20, 21]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.multiplicity.tolist() == [1] * 6
    assert batch.segments == (Segment(0, 4, -1), Segment(4, 6, -1))
    assert batch.sources.tolist() == [0, 2, 4]
    assert batch.labels.tolist() == [11, 13, 21]
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.weights.tolist() == [0.25, 0.25, 0.5]
    assert batch.advantages.tolist() == [-2, 3, 0.5]
    assert batch.behaviour_logprobs.tolist() == [-5.5, -6.5, -10.5]
    assert batch.versions.tolist() == [7, 7, 8]
    assert batch.temperatures.tolist() == [0.5, 2.0, 1.0]
    assert len(batch) == 6


def test_a_shared_prefix_by_hand() -> None:
    """Token 12 is trained in both rows, and position 1 predicts it for each of them; then the rows part."""
    rows = [
        TrainRow(sample=sample([10, 11, 12, 13], [0, 0, 1, 1]), advantages=np.array([1.0, 2.0]), weight=0.25),
        TrainRow(sample=sample([10, 11, 12, 14, 15], [0, 0, 1, 0, 1]), advantages=np.array([3.0, 4.0]), weight=0.5),
    ]
    batch = lay_out(rows, [0, 3])
    assert batch.tokens.tolist() == [10, 11, 12, 13, 14, 15]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 3, 4]
    assert batch.multiplicity.tolist() == [2, 2, 2, 1, 1, 1]
    assert batch.segments == (Segment(0, 3, -1), Segment(3, 4, 0), Segment(4, 6, 0))
    assert batch.sources.tolist() == [1, 2, 1, 4]
    assert batch.labels.tolist() == [12, 13, 12, 15]
    assert batch.rows.tolist() == [0, 0, 1, 1]
    assert batch.advantages.tolist() == [1, 2, 3, 4]
    assert batch.weights.tolist() == [0.25, 0.25, 0.5, 0.5]
    with pytest.raises(ValueError, match="row 1 does not begin with the 4 tokens that it is said to share"):
        lay_out(rows, [0, 4])


def test_best_fit_packs_what_longest_to_emptiest_cannot() -> None:
    """Two bins of 10. Spread evenly, both hold 9 when the 2 comes; best fit gives 6 + 4 and 5 + 3 + 2."""
    lengths = [6, 5, 4, 3, 2]
    rows = [SftRow(token_ids=(1,) * length, loss_mask=(0,) + (1,) * (length - 1)) for length in lengths]
    [batches] = pack(rows, ranks=1, token_budget=10)
    assert [sorted(s.stop - s.start for s in batch.segments) for batch in batches] == [[4, 6], [2, 3, 5]]


@given(st.lists(st.integers(1, BUDGET), max_size=40), st.integers(1, 12))
def test_best_fit_is_that_of_the_textbook(lengths: list[int], count: int) -> None:
    """Each row, longest first, goes to the fullest bin that has room for it; among equals to the first."""
    bins: list[list[int]] = [[] for _ in range(count)]
    fits = True
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        loads = [sum(lengths[j] for j in members) for members in bins]
        room = [b for b in range(count) if loads[b] + lengths[i] <= BUDGET]
        fits = fits and bool(room)
        if fits:
            bins[max(room, key=loads.__getitem__)].append(i)
    assert _longest_to_fullest(lengths, count, BUDGET) == (bins if fits else None)


def test_array_types_are_the_contract() -> None:
    batch = filler()
    assert batch.reference_logprobs is None, "nobody needs them here"
    arrays = [name for name in MicroBatch.__slots__ if name not in ("segments", "reference_logprobs")]
    assert {name: getattr(batch, name).dtype for name in arrays} == {
        "tokens": np.int64,
        "position_ids": np.int64,
        "multiplicity": np.int64,
        "sources": np.int64,
        "labels": np.int64,
        "rows": np.int64,
        "advantages": np.float32,
        "weights": np.float32,
        "behaviour_logprobs": np.float32,
        "versions": np.int32,
        "temperatures": np.float32,
    }
    assert (len(batch), len(batch.labels), batch.segments) == (2, 0, (Segment(0, 2, -1),))


def test_a_supervised_row_has_labels_but_no_version() -> None:
    [[batch]] = pack([SftRow(token_ids=(1, 2, 3), loss_mask=(0, 0, 1), weight=0.5)], ranks=1, token_budget=4)
    assert (batch.sources.tolist(), batch.labels.tolist(), batch.weights.tolist()) == ([1], [3], [0.5])
    assert batch.versions.tolist() == [-1] and batch.temperatures.tolist() == [1.0]
    assert not batch.advantages.any() and not batch.behaviour_logprobs.any()


@given(train_rows(), st.integers(1, 5))
def test_every_row_is_packed_once_and_aligned(rows: list[TrainRow], ranks: int) -> None:
    found = []
    for batch in (b for rank in pack(rows, ranks, BUDGET) for b in rank if not is_filler(b)):
        for number, segment in enumerate(batch.segments):
            tokens = batch.tokens[segment.start : segment.stop]
            row = next(r for r in rows if r.sample.token_ids[0] == tokens[0])
            found.append(row)
            assert tokens.tolist() == list(row.sample.token_ids)
            assert batch.position_ids[segment.start : segment.stop].tolist() == list(range(len(tokens)))
            mine = batch.rows == number
            trained = np.flatnonzero(row.sample.loss_mask)
            assert batch.sources[mine].tolist() == (segment.start + trained - 1).tolist()
            assert batch.labels[mine].tolist() == row.sample.token_ids[trained].tolist()
            assert batch.behaviour_logprobs[mine].tolist() == row.sample.logprobs[trained].tolist()
            assert batch.versions[mine].tolist() == row.sample.versions[trained].tolist()
            # Here a token's advantage is its own id.
            assert batch.advantages[mine].tolist() == batch.labels[mine].tolist()
            assert batch.weights[mine].tolist() == [row.weight] * len(trained)
    assert sorted(row.weight for row in found) == [row.weight for row in rows]


@given(train_rows(), st.integers(1, 5))
def test_lockstep_budget_and_determinism(rows: list[TrainRow], ranks: int) -> None:
    packed = pack(rows, ranks, BUDGET)
    assert len(packed) == ranks
    assert len({len(rank) for rank in packed}) == 1 and packed[0]
    assert all(len(b) <= BUDGET for rank in packed for b in rank if not is_filler(b))
    again = pack(rows, ranks, BUDGET)
    assert [[b.tokens.tolist() for b in rank] for rank in packed] == [
        [b.tokens.tolist() for b in rank] for rank in again
    ]


@given(train_rows(), st.integers(1, 5))
def test_few_and_balanced_micro_batches(rows: list[TrainRow], ranks: int) -> None:
    """There are at most twice as many micro-batches as the lower bound, as best-fit decreasing guarantees. Their sizes
    differ by one row at most, as LPT (longest processing time first) guarantees."""
    packed = pack(rows, ranks, BUDGET)
    total = sum(len(r) for r in rows)
    lower_bound = max(1, -(-total // BUDGET))
    assert len(packed[0]) <= -(-2 * lower_bound // ranks)
    longest = max((len(r) for r in rows), default=0)
    if total <= len(packed[0]) * ranks * (BUDGET - longest):  # roomy enough for LPT never to pass the budget
        loads = [size(b) for rank in packed for b in rank]
        assert max(loads) - min(loads) <= longest


def test_equal_rows_are_spread_evenly() -> None:
    rows = [SftRow(token_ids=(1,) * 8, loss_mask=(0,) + (1,) * 7)] * 12
    packed = pack(rows, ranks=2, token_budget=32)
    assert [[len(b) for b in rank] for rank in packed] == [[24, 24], [24, 24]]


def test_totals_of_the_ranks_are_evened_out() -> None:
    """Going back and forth over the ranks gives 8 + 5 and 7 + 6, not 8 + 6 and 7 + 5. The two largest micro-batches run
    at the same time."""
    rows = [SftRow(token_ids=(1,) * n, loss_mask=(0,) * n) for n in (5, 8, 6, 7)]
    assert [[len(b) for b in rank] for rank in pack(rows, ranks=2, token_budget=8)] == [[8, 5], [7, 6]]


def test_the_tight_fit_is_found_where_balancing_would_need_one_more() -> None:
    lengths = [3, 3, 2, 2, 2]  # LPT over two bins of 6 ends at 7 + 5; {3,3} and {2,2,2} fit
    rows = [SftRow(token_ids=(1,) * n, loss_mask=(0,) * n) for n in lengths]
    assert [[len(b) for b in rank] for rank in pack(rows, ranks=1, token_budget=6)] == [[6, 6]]


def test_fewer_rows_than_ranks_are_filled_with_zero_weight() -> None:
    packed = pack([SftRow(token_ids=(5, 6), loss_mask=(0, 1))], ranks=3, token_budget=4)
    assert [len(rank) for rank in packed] == [1, 1, 1]
    assert sorted(b.weights.sum() for rank in packed for b in rank) == [0, 0, 1]


def test_no_rows_still_keep_every_rank_in_step() -> None:
    packed = pack([], ranks=2, token_budget=4)
    assert [len(rank) for rank in packed] == [1, 1] and all(is_filler(b) for rank in packed for b in rank)


def test_a_row_over_the_budget_names_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"row 1 has 9 tokens, trainer.token_budget is 8: raise .* at least 9"):
        pack([SftRow(token_ids=(1,) * n, loss_mask=(0,) * n) for n in (2, 9)], ranks=1, token_budget=8)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (SftRow(token_ids=(), loss_mask=()), "row 0 has no tokens"),
        (SftRow(token_ids=(1, 2), loss_mask=(1, 1)), "the first token of a row is to be trained"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused(row: SftRow, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack([row], ranks=1, token_budget=8)


def test_what_belongs_to_a_rows_tokens_must_be_as_long() -> None:
    with pytest.raises(ValueError, match="2 token_ids but 1 loss_mask"):
        SftRow(token_ids=(1, 2), loss_mask=(0,))
    with pytest.raises(ValueError, match="3 advantages for 1 trained tokens"):
        TrainRow(sample=sample([1, 2], [0, 1]), advantages=np.zeros(3), weight=1.0)


@pytest.mark.parametrize(("ranks", "budget"), [(0, 8), (1, 0)])
def test_no_ranks_or_no_budget_are_refused(ranks: int, budget: int) -> None:
    with pytest.raises(ValueError, match=f"ranks={ranks} and token_budget={budget} must both be at least 1"):
        pack([], ranks, budget)


@given(st.lists(st.integers(1, 32), min_size=1, max_size=40), st.integers(1, 3))
def test_there_are_as_few_micro_batches_as_if_each_number_had_been_tried(lengths: list[int], ranks: int) -> None:
    count = next(n for n in range(1, 41) if _fitted(lengths, n * ranks, 32) is not None)
    assert count <= len(assign(lengths, ranks, 32)[0]) <= count + 1
