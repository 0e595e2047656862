"""Packing of trees: each row once, prefixes once in a micro-batch, within budget, in lockstep, balanced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.batch.packing_trees import ROWS, Tree, assign_trees

BUDGET = 32


def group(first: int, prefix: int, suffixes: Sequence[int]) -> Tree:
    """Rows with a prefix and continuations of these lengths, numbered from `first`."""
    rows = range(first, first + len(suffixes))
    return Tree(rows, [prefix + suffix for suffix in suffixes], [prefix] * len(suffixes))


def test_a_tree_over_the_budget_is_cut_between_rows_and_repeats_its_prefix() -> None:
    [[*batches]] = assign_trees([group(0, 10, [5, 5, 5, 5])], ranks=1, token_budget=20)
    assert sorted(list(tree.rows) for trees in batches for tree in trees) == [[0, 1], [2, 3]]
    assert [sum(tree.tokens for tree in trees) for trees in batches] == [20, 20]


def test_ranks_that_would_idle_get_a_part_of_a_tree() -> None:
    """Whole, the tree would keep one of two ranks busy for 50 tokens; in parts of half the budget each has 30."""
    of_ranks = assign_trees([group(0, 10, [10, 10, 10, 10])], ranks=2, token_budget=60)
    assert [[tree.tokens for trees in batches for tree in trees] for batches in of_ranks] == [[30], [30]]


def test_a_tree_is_cut_where_a_micro_batch_has_room_and_the_others_stay_whole() -> None:
    """Whole, three trees of 60 need three micro-batches of 100, and so do their fifteen rows of 20. Two are enough if
    one tree is cut: 60 + 40 and 60 + 30, as its second part has the prefix of 10 again."""
    trees = [group(5 * i, 10, [10] * 5) for i in range(3)]
    [batches] = assign_trees(trees, ranks=1, token_budget=100)
    assert [[(list(tree.rows), tree.tokens) for tree in batch] for batch in batches] == [
        [([10, 11, 12, 13, 14], 60), ([0, 1, 2], 40)],
        [([5, 6, 7, 8, 9], 60), ([3, 4], 30)],
    ]


def test_whole_trees_stay_whole_where_they_fit() -> None:
    trees = [group(4 * i, 30, [5, 5, 5, 5]) for i in range(4)]
    of_ranks = assign_trees(trees, ranks=2, token_budget=100)
    assert [[tree.tokens for trees in batches for tree in trees] for batches in of_ranks] == [[50, 50], [50, 50]]


@given(
    st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(1, 12), min_size=1, max_size=8)), max_size=8),
    st.integers(1, 4),
)
def test_trees_are_packed_whole_within_budget_and_in_lockstep(shapes: list[tuple[int, list[int]]], ranks: int) -> None:
    trees, count = [], 0
    for prefix, suffixes in shapes:
        trees.append(group(count, prefix, suffixes))
        count += len(suffixes)
    of_ranks = assign_trees(trees, ranks, BUDGET)
    assert len(of_ranks) == ranks and len({len(batches) for batches in of_ranks}) == 1
    packed = [tree for batches in of_ranks for trees in batches for tree in trees]
    assert sorted(row for tree in packed for row in tree.rows) == list(range(count))
    assert all(sum(tree.tokens for tree in trees) <= BUDGET for batches in of_ranks for trees in batches)
    rows = {row: length for tree in trees for row, length in zip(tree.rows, tree.lengths, strict=True)}
    assert all([rows[row] for row in tree.rows] == list(tree.lengths) for tree in packed)


def test_rows_over_half_the_budget_are_counted_and_not_tried() -> None:
    """One more micro-batch at a time, from the 1,025 that the tokens would fill, took 43 s for these."""
    of_ranks = assign_trees([Tree([i], [1025], [0]) for i in range(2048)], 2, 2048)
    assert [len(batches) for batches in of_ranks] == [1024, 1024]


@pytest.mark.parametrize("parts", [3, 4, 7])
def test_rows_just_over_a_part_of_the_budget_are_counted_too(parts: int) -> None:
    """Responses that are all cut at the same length. 4,096 over a third took 8 s."""
    length = 4096 // parts + 1
    of_ranks = assign_trees([Tree([i], [length], [0]) for i in range(4096)], 2, 4096)
    assert [len(batches) for batches in of_ranks] == [-(-4096 // (parts - 1) // 2)] * 2


def test_a_tree_of_very_many_rows_is_cut_because_each_copies_the_prefix() -> None:
    [batches] = assign_trees([group(0, 30, [1] * 64)], ranks=1, token_budget=94)
    assert len(batches) > 1 and max(sum(tree.lengths) for trees in batches for tree in trees) <= ROWS * 94


def test_a_row_of_a_tree_that_is_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 1 has 40 tokens, trainer.token_budget is 32"):
        assign_trees([group(0, 30, [1, 10])], 2, BUDGET)


@pytest.mark.parametrize("prefix_share", [0.0, 0.3, 0.5, 0.8])
def test_a_long_tailed_step_fills_the_budgets_and_keeps_the_ranks_even(prefix_share: float) -> None:
    """256 groups of 16 rows, 4,096 in all, over 8 ranks: at least 0.95 of the budgets are used, the busiest rank has
    at most 5 % more than the mean, and the ranks take at most 8 % longer than with whole trees that fit perfectly."""
    random = np.random.default_rng(0)
    trees = []
    for number in range(256):
        lengths = random.lognormal(np.log(512), 1.0, 16).clip(16, 4096).astype(int)
        prefix = int(prefix_share * lengths.mean())
        lengths = np.maximum(lengths, prefix + 1).clip(0, 4096).tolist()
        trees.append(Tree(range(16 * number, 16 * number + 16), lengths, [prefix] * 16))
    of_ranks = assign_trees(trees, 8, 8192)
    loads = [[sum(tree.tokens for tree in trees) for trees in batches] for batches in of_ranks]
    totals = [sum(of_rank) for of_rank in loads]
    assert sum(totals) >= 0.95 * 8192 * sum(map(len, loads))
    assert max(totals) <= 1.05 * sum(totals) / len(totals)
    assert sum(map(max, zip(*loads, strict=True))) <= 1.08 * sum(tree.tokens for tree in trees) / 8
    if prefix_share:
        assert sum(totals) < 0.95 * sum(sum(tree.lengths) for tree in trees)
