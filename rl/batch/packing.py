"""Packing: assign rows to micro-batches and micro-batches to ranks. No row is ever truncated or dropped."""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections.abc import Sequence

from rl.batch.micro_batch import PackedBatch, Row, concatenate, filler


def pack(rows: Sequence[Row], ranks: int, token_budget: int) -> list[list[PackedBatch]]:
    """Lay rows out in the micro-batches of `ranks` ranks, as `assign` says. Micro-batches without rows are fillers of
    zero weight.

    Raises:
        ValueError: see `assign`; or a row's first token is to be trained, which nothing predicts.
    """
    return [
        [concatenate([rows[i] for i in members]) if members else filler() for members in of_rank]
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

    Starts at the lower bound, ceil(total / (budget * ranks)) micro-batches a rank, and adds one a rank until all fit.
    """
    per_rank = max(1, -(-sum(lengths) // (budget * ranks)))
    while True:
        count = per_rank * ranks
        bins = _longest_to_emptiest(lengths, count, budget) or _longest_to_fullest(lengths, count, budget)
        if bins is not None:
            return sorted(bins, key=lambda members: -sum(lengths[i] for i in members))
        per_rank += 1


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
