"""Packing: assign rows to micro-batches and micro-batches to ranks. No row is ever truncated or dropped.

Rows with a common prefix, a group's say, are packed as trees, which cost their tokens once. A tree that is over the
budget is cut between rows, and each part has the prefix again. Whole trees are chunky, though: ranks would wait for
each other, and budgets would stay half empty. So `assign_trees` also tries trees that are cut smaller.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from rl.batch.micro_batch import MicroBatch, Row, lay_out

CUTS = (1, 2, 4, 8)
"""Trees are tried whole, and cut into parts of at most a half, a quarter and an eighth of the token budget, and into
single rows."""
ROWS = 8
"""The rows of a tree may have this many budgets of tokens when each counts for itself. Attention copies a prefix for
each of its rows, and each row has predictions of its own, so memory grows with them."""
PARTS = 8
"""How small a part of the budget a row may be to count in the lower bound of the micro-batches."""
GOOD_ENOUGH = 1.02
"""Nothing smaller is tried when there cannot be fewer micro-batches, and the ranks take at most this many times as long
as with whole trees that fit perfectly."""


def pack(rows: Sequence[Row], ranks: int, token_budget: int) -> list[list[MicroBatch]]:
    """Lay rows out in the micro-batches of `ranks` ranks, as `assign` says, without shared prefixes.

    Raises:
        ValueError: see `assign`; or a row's first token is to be trained, which nothing predicts.
    """
    return [
        [lay_out([rows[i] for i in members]) for members in of_rank]
        for of_rank in assign([len(row) for row in rows], ranks, token_budget)
    ]


class Tree(NamedTuple):
    """Rows that may share prefixes, as numbers, in an order in which each shares the most with the one before it."""

    rows: Sequence[int]
    lengths: Sequence[int]
    shared: Sequence[int]
    """The number of tokens that a row has in common with the one before it. That of the first does not matter."""

    def cut(self, limit: float, rows_limit: float) -> list[Tree]:
        """Parts of at most `limit` tokens, whose rows have at most `rows_limit` tokens when each counts for itself; or
        parts of a single row."""
        starts, tokens, in_rows = [0], self.lengths[0], self.lengths[0]
        for i in range(1, len(self.rows)):
            tokens += self.lengths[i] - self.shared[i]
            in_rows += self.lengths[i]
            if tokens > limit or in_rows > rows_limit:
                starts.append(i)
                tokens = in_rows = self.lengths[i]
        if len(starts) == 1:
            return [self]
        return [self._part(start, stop) for start, stop in pairwise([*starts, len(self.rows)])]

    @property
    def tokens(self) -> int:
        return sum(self.lengths) - sum(self.shared[1:])

    def _part(self, start: int, stop: int) -> Tree:
        return Tree(self.rows[start:stop], self.lengths[start:stop], self.shared[start:stop])


def assign_trees(trees: Sequence[Tree], ranks: int, token_budget: int) -> list[list[list[Tree]]]:
    """Spread trees over `ranks` lists of micro-batches of at most `token_budget` tokens: each a list of trees, parts of
    the given ones.

    Of the cuts that are tried, that one is taken with which each rank has the fewest micro-batches, because ZeRO-3
    gathers the whole model for each; of equals that one with which the ranks take the least time. As every rank waits
    for the slowest in every micro-batch, that is the sum of the largest micro-batches, in tokens. For the rest see
    `assign`, which says what is raised, too.
    """
    for tree in trees:
        for row, length in zip(tree.rows, tree.lengths, strict=True):
            _check(row, length, token_budget)
    fewest = max(1, -(-sum(tree.tokens for tree in trees) // (ranks * token_budget)))
    shortest = sum(tree.tokens for tree in trees) / ranks
    tried: list[tuple[int, float, list[list[list[Tree]]]]] = []
    for limit in (*(token_budget / cut for cut in CUTS), 0):
        parts = [part for tree in trees for part in tree.cut(limit, ROWS * token_budget)]
        sizes = [part.tokens for part in parts]
        plan = assign(sizes, ranks, token_budget)
        time = sum(max(sum(sizes[i] for i in members) for members in turn) for turn in zip(*plan, strict=True))
        tried.append((len(plan[0]), time, [[[parts[i] for i in members] for members in of_rank] for of_rank in plan]))
        if len(plan[0]) == fewest and time <= GOOD_ENOUGH * shortest:
            break
    return min(tried, key=lambda found: found[:2])[2]


def assign(lengths: Sequence[int], ranks: int, token_budget: int) -> list[list[list[int]]]:
    """Spread rows over `ranks` lists of micro-batches of at most `token_budget` tokens: each a list of row indices.

    Every rank gets the same number of micro-batches, because ZeRO-3 gathers parameters from all ranks in every forward.
    It is the smallest number for which one of our two heuristics succeeds (`_fill`). Token counts are balanced over
    micro-batches and over ranks, and micro-batches that run at the same time are close in size. Some may have no
    rows, and there is at least one a rank, also without any row. The result is deterministic.

    Raises:
        ValueError: ranks or token_budget below 1, an empty row, or a row longer than the budget.
    """
    if ranks < 1 or token_budget < 1:
        raise ValueError(f"ranks={ranks} and token_budget={token_budget} must both be at least 1")
    for index, length in enumerate(lengths):
        _check(index, length, token_budget)
    bins = _fill(lengths, ranks, token_budget)
    batches: list[list[list[int]]] = [[] for _ in range(ranks)]
    for place, members in enumerate(bins):
        turn, column = divmod(place, ranks)
        # Bins come largest first. Going back and forth over the ranks evens out their totals.
        rank = column if turn % 2 == 0 else ranks - 1 - column
        batches[rank].append(members)
    return batches


def _check(index: int, length: int, token_budget: int) -> None:
    if length == 0:
        raise ValueError(f"row {index} has no tokens")
    if length > token_budget:
        raise ValueError(
            f"row {index} has {length} tokens, trainer.token_budget is {token_budget}: "
            f"raise trainer.token_budget to at least {length} or lower rollout.max_context"
        )


def _fill(lengths: Sequence[int], ranks: int, budget: int) -> list[list[int]]:
    """Row indices per micro-batch, largest micro-batch first. The number of micro-batches is a multiple of `ranks`.

    Starts at a lower bound, adds 1, 2, 4 … a rank until all fit, and looks for the smallest number in between.
    """
    failed, step = _at_least(lengths, ranks, budget) - 1, 1
    while (bins := _fitted(lengths, (failed + step) * ranks, budget)) is None:
        failed, step = failed + step, 2 * step
    while step > 1:
        half = step // 2
        fewer = _fitted(lengths, (failed + half) * ranks, budget)
        if fewer is None:
            failed, step = failed + half, step - half
        else:
            bins, step = fewer, half
    return sorted(bins, key=lambda members: -sum(lengths[i] for i in members))


def _at_least(lengths: Sequence[int], ranks: int, budget: int) -> int:
    """A lower bound of the micro-batches a rank, by the tokens; and for every n up to PARTS by the rows over an nth of
    the budget, of which fewer than n fit into one."""
    ordered, count = sorted(lengths), len(lengths)
    counts = [-(-(count - bisect_right(ordered, budget // n)) // (n - 1)) for n in range(2, PARTS + 1)]
    return max(1, -(-max(-(-sum(lengths) // budget), *counts) // ranks))


def _fitted(lengths: Sequence[int], count: int, budget: int) -> list[list[int]] | None:
    return _longest_to_emptiest(lengths, count, budget) or _longest_to_fullest(lengths, count, budget)


def _longest_to_emptiest(lengths: Sequence[int], count: int, budget: int) -> list[list[int]] | None:
    """Longest processing time first: balanced (the largest bin is at most 4/3 of the best possible; Graham 1969). None
    if a bin exceeds the budget."""
    bins: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, b) for b in range(count)]
    for i in _longest_first(lengths):
        load, b = heapq.heappop(heap)
        if load + lengths[i] > budget:
            return None
        bins[b].append(i)
        heapq.heappush(heap, (load + lengths[i], b))
    return bins


def _longest_to_fullest(lengths: Sequence[int], count: int, budget: int) -> list[list[int]] | None:
    """Best-fit decreasing: tight instead of balanced. It fits some sets that the other heuristic does not. None if the
    rows do not fit."""
    bins: list[list[int]] = [[] for _ in range(count)]
    by_load = sorted((0, -b) for b in range(count))  # of equal loads, the first bin is the last entry
    for i in _longest_first(lengths):
        place = bisect_right(by_load, (budget - lengths[i], 0)) - 1
        if place < 0:
            return None
        load, b = by_load.pop(place)
        bins[-b].append(i)
        insort(by_load, (load + lengths[i], b))
    return bins


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])
