"""Packing: assign rows to micro-batches and micro-batches to ranks. No row is ever truncated or dropped.

`rl.batch.packing_trees` does it for rows with common prefixes.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections.abc import Sequence
from typing import TypeVar

from rl.batch.micro_batch import MicroBatch, Row, lay_out

Batch = TypeVar("Batch")

PARTS = 8
"""How small a part of the budget a row may be to count in the lower bound of the micro-batches."""


def pack(rows: Sequence[Row], ranks: int, token_budget: int) -> list[list[MicroBatch]]:
    """Lay rows out in the micro-batches of `ranks` ranks, as `assign` says, without shared prefixes.

    Raises:
        ValueError: see `assign`; or a row's first token is to be trained, which nothing predicts.
    """
    return [
        [lay_out([rows[i] for i in members]) for members in of_rank]
        for of_rank in assign([len(row) for row in rows], ranks, token_budget)
    ]


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
    check(range(len(lengths)), lengths, token_budget)
    return deal(_fill(lengths, ranks, token_budget), ranks)


def deal(batches: Sequence[Batch], ranks: int) -> list[list[Batch]]:
    """Deal out micro-batches, largest first, back and forth over the ranks, which evens out their totals."""
    turns = [batches[place : place + ranks] for place in range(0, len(batches), ranks)]
    return [list(of_rank) for of_rank in zip(*(turn[:: (-1) ** i] for i, turn in enumerate(turns)), strict=True)]


def check(rows: Sequence[int], lengths: Sequence[int], token_budget: int) -> None:
    """Raise ValueError if one of the rows with these numbers and lengths is empty or over the budget."""
    for row, length in zip(rows, lengths, strict=True):
        if length == 0:
            raise ValueError(f"row {row} has no tokens")
        if length > token_budget:
            raise ValueError(
                f"row {row} has {length} tokens, trainer.token_budget is {token_budget}: "
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
