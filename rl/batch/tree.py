"""The prefix trees of a micro-batch: rows that begin with the same tokens have those in common.

    row 0   A B C D          tokens    A B C D E F        segments   A B │ C D │ E F
    row 1   A B E F          depths    0 1 2 3 2 3        parents     -     0     0

A segment is a run of tokens that follow each other in every row that has them. Its tokens see each other causally, and
all tokens of its ancestors: these are exactly the tokens before it in its rows. So every token has the hidden state
that it would have in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Segment(NamedTuple):
    """The positions `start` to `stop` (exclusive) of a micro-batch. `parent` is the number of the segment before it in
    its rows, which has a smaller number; -1 where its rows begin with it."""

    start: int
    stop: int
    parent: int


@dataclass(frozen=True, slots=True)
class Forest:
    """Rows laid out as prefix trees."""

    segments: tuple[Segment, ...]
    """In the order of their positions, which they cover without gaps."""
    places: tuple[npt.NDArray[np.int64], ...]
    """For each row the positions of its tokens, in order."""

    @property
    def tokens(self) -> int:
        return self.segments[-1].stop if self.segments else 0


@dataclass(slots=True)
class _Node:
    """A segment that grows into the tree: tokens `begin` to `end` of its rows, at the positions from `start` on."""

    begin: int
    end: int
    start: int
    parent: _Node | None


def plant(lengths: Sequence[int], shared: Sequence[int]) -> Forest:
    """Lay rows out. Row i begins with the first `shared[i]` tokens of row i - 1, and with 0 of them it shares none.

    A row may be a prefix of the one after it, and rows may be equal.

    Raises:
        ValueError: a row shares more tokens than it has, or than the row before it has.
    """
    nodes: list[_Node] = []
    path: list[_Node] = []
    places: list[npt.NDArray[np.int64]] = []
    tokens = 0
    for i, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        if not 0 <= common <= min(length, lengths[i - 1] if i else 0):
            raise ValueError(f"row {i} of {length} tokens cannot share {common} with the row before it")
        _go_back(path, common, nodes)
        place = np.empty(length, np.int64)
        if common:
            place[:common] = places[i - 1][:common]
        place[common:] = np.arange(tokens, tokens + length - common)
        places.append(place)
        if length > common:
            path.append(_Node(common, length, tokens, path[-1] if path else None))
            nodes.append(path[-1])
            tokens += length - common
    nodes.sort(key=lambda node: node.start)
    numbers = {id(node): number for number, node in enumerate(nodes)}
    segments = (
        Segment(n.start, n.start + n.end - n.begin, -1 if n.parent is None else numbers[id(n.parent)]) for n in nodes
    )
    return Forest(tuple(segments), tuple(places))


def _go_back(path: list[_Node], depth: int, nodes: list[_Node]) -> None:
    """Shorten a path to its first `depth` tokens. A node that this cuts becomes two."""
    while path and path[-1].begin >= depth:
        path.pop()
    if path and path[-1].end > depth:
        lower = path.pop()  # keeps its children
        upper = _Node(lower.begin, depth, lower.start, lower.parent)
        lower.start, lower.begin, lower.parent = lower.start + depth - lower.begin, depth, upper
        nodes.append(upper)
        path.append(upper)
