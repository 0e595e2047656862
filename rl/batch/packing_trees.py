"""Packing of trees: rows with a common prefix, a group's say, which cost their common tokens once in a micro-batch.

A tree that is over the budget is cut between rows, and each part has the prefix again. Whole trees are chunky, though:
ranks would wait for each other, and budgets would stay half empty. So `assign_trees` also tries micro-batches that are
filled to the brim with the beginnings of trees, and rows on their own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import attrgetter, sub
from typing import NamedTuple

from rl.batch.packing import assign, check, deal

ROWS = 8
"""The rows of a tree may have this many budgets of tokens when each counts for itself. Attention copies a prefix for
each of its rows, and each row has predictions of its own, so memory grows with them."""
GOOD_ENOUGH = 1.02
"""Nothing else is tried when there cannot be fewer micro-batches, and the ranks take at most this many times as long as
with whole trees that fit perfectly."""
LIMITS = 64
"""So many sizes of micro-batches are between an empty one and the budget."""
LOOKED_AT = 32
"""So many trees, the largest, are looked at for the one whose beginning fills a micro-batch best."""


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
        return [self.part(start, stop) for start, stop in pairwise([*starts, len(self.rows)])]

    @property
    def tokens(self) -> int:
        return sum(self.lengths) - sum(self.shared[1:])

    def part(self, start: int, stop: int | None) -> Tree:
        """The tree of some of its rows."""
        return Tree(self.rows[start:stop], self.lengths[start:stop], self.shared[start:stop])


def assign_trees(trees: Sequence[Tree], ranks: int, token_budget: int) -> list[list[list[Tree]]]:
    """Spread trees over `ranks` lists of micro-batches of at most `token_budget` tokens: each a list of trees, parts of
    the given ones.

    Of the ways that are tried, that one is taken with which each rank has the fewest micro-batches, because ZeRO-3
    gathers the whole model for each; of equals that one with which the ranks take the least time. As every rank waits
    for the slowest in every micro-batch, that is the sum of the largest micro-batches, in tokens. For the rest see
    `rl.batch.packing.assign`, which says what is raised, too.
    """
    for tree in trees:
        check(tree.rows, tree.lengths, token_budget)
    whole = [part for tree in trees for part in tree.cut(token_budget, ROWS * token_budget)]
    best = _assigned(whole, ranks, token_budget)
    tokens = sum(tree.tokens for tree in whole)
    fewest = max(1, -(-tokens // (ranks * token_budget)))
    single = [tree.part(i, i + 1) for tree in trees for i in range(len(tree.rows))]
    good = len(best[0]) == fewest and _time(best) <= GOOD_ENOUGH * tokens / ranks
    if good or len(whole) == len(single):
        return best
    best = min(best, _assigned(single, ranks, token_budget), key=_cost)
    batches = _brimful([_Left.of(tree) for tree in whole], range(fewest, len(best[0]) + 1), ranks, token_budget)
    return min(best, deal(batches, ranks), key=_cost) if batches else best


def _cost(of_ranks: list[list[list[Tree]]]) -> tuple[int, int]:
    """What is to be small: the micro-batches a rank, and the time that the ranks take."""
    return len(of_ranks[0]), _time(of_ranks)


def _time(of_ranks: list[list[list[Tree]]]) -> int:
    return sum(max(sum(tree.tokens for tree in trees) for trees in turn) for turn in zip(*of_ranks, strict=True))


def _assigned(parts: Sequence[Tree], ranks: int, token_budget: int) -> list[list[list[Tree]]]:
    """`assign` for parts that stay as they are."""
    plan = assign([part.tokens for part in parts], ranks, token_budget)
    return [[[parts[i] for i in members] for members in of_rank] for of_rank in plan]


class _Left(NamedTuple):
    """A tree that is in no micro-batch yet. `sums` are the tokens of its first rows: of one, of two, and so on."""

    tokens: int
    tree: Tree
    sums: Sequence[int]

    @classmethod
    def of(cls, tree: Tree) -> _Left:
        sums = list(accumulate([tree.lengths[0], *map(sub, tree.lengths[1:], tree.shared[1:])]))
        return cls(sums[-1], tree, sums)

    def cut(self, room: int) -> tuple[int, int]:
        """The number of its first rows that have at most `room` tokens; and these tokens, less those that its other
        rows then have again."""
        rows = bisect_right(self.sums, room)
        return rows, self.sums[rows - 1] - self.tree.shared[rows] if rows else 0


_by_tokens = attrgetter("tokens")


def _brimful(trees: Sequence[_Left], counts: range, ranks: int, token_budget: int) -> list[list[Tree]]:
    """As few micro-batches as `_filled` makes, of `counts` for each rank, and these as small as it can; largest first.
    None at all, if it fails with all these counts."""
    trees = sorted(trees, key=_by_tokens)
    place = bisect_left(counts, True, key=lambda count: bool(_filled(trees, count * ranks, token_budget)))
    if place == len(counts):
        return []
    count, tokens = counts[place] * ranks, sum(tree.tokens for tree in trees)
    limits = [*range(-(-tokens // count), token_budget, -(-token_budget // LIMITS)), token_budget]
    place = bisect_left(limits, True, key=lambda limit: bool(_filled(trees, count, limit)))
    batches = _filled(trees, count, limits[place])
    return sorted(batches, key=lambda batch: -sum(tree.tokens for tree in batch))


def _filled(trees: Sequence[_Left], count: int, limit: int) -> list[list[Tree]]:
    """Fill `count` micro-batches one after the other, with at most `limit` tokens each. `trees` come smallest first.
    Empty, if something is left over."""
    left = list(trees)
    batches = [_fill(left, limit) for _ in range(count)]
    return [] if left else batches


def _fill(left: list[_Left], room: int) -> list[Tree]:
    """Take trees for a micro-batch out of `left`: the largest that fits, as long as one does; then the beginning of one
    that is the most worth it, and so on."""
    batch = []
    while left:
        fitting = bisect_right(left, room, key=_by_tokens)
        taken = left.pop(fitting - 1) if fitting else _beginning(left, room)
        if taken is None:
            break
        batch.append(taken.tree)
        room -= taken.tokens
    return batch


def _beginning(left: list[_Left], room: int) -> _Left | None:
    """Cut off the beginning of that tree with which the most is won; None if with none there is."""
    looked_at = range(max(0, len(left) - LOOKED_AT), len(left))
    place = max(looked_at, key=lambda place: left[place].cut(room)[1])
    rows, won = left[place].cut(room)
    if won <= 0:
        return None
    tree = left.pop(place).tree
    insort(left, _Left.of(tree.part(rows, None)), key=_by_tokens)
    return _Left.of(tree.part(0, rows))
