"""Prefix trees: every row finds its tokens along a path, and a token stands once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.batch.tree import Segment, plant


def common(first: list[int], second: list[int]) -> int:
    different = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(different, min(len(first), len(second)))


def test_the_example_of_the_docstring() -> None:
    forest = plant([4, 4], [0, 2])
    assert forest.segments == (Segment(0, 2, -1), Segment(2, 4, 0), Segment(4, 6, 0))
    assert [place.tolist() for place in forest.places] == [[0, 1, 2, 3], [0, 1, 4, 5]]
    assert forest.tokens == 6


def test_a_segment_that_is_cut_twice_keeps_its_children() -> None:
    """Rows: abcdef, abcdXY, abcdXZ, abQ."""
    forest = plant([6, 6, 6, 3], [0, 4, 5, 2])
    assert forest.segments == (
        Segment(0, 2, -1),  # ab
        Segment(2, 4, 0),  # cd
        Segment(4, 6, 1),  # ef
        Segment(6, 7, 1),  # X
        Segment(7, 8, 3),  # Y
        Segment(8, 9, 3),  # Z
        Segment(9, 10, 0),  # Q
    )
    assert forest.places[2].tolist() == [0, 1, 2, 3, 6, 8]


def test_equal_rows_and_prefixes_of_rows() -> None:
    forest = plant([3, 3, 5], [0, 3, 3])
    assert forest.segments == (Segment(0, 3, -1), Segment(3, 5, 0))
    assert [place.tolist() for place in forest.places] == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3, 4]]
    assert plant([], []).segments == () and plant([], []).tokens == 0


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=10))
def test_rows_are_paths_of_segments_and_no_token_stands_twice(rows: list[list[int]]) -> None:
    rows = sorted(rows)
    shared = [0, *(common(a, b) for a, b in pairwise(rows))][: len(rows)]
    forest = plant([len(row) for row in rows], shared)
    tokens: dict[int, int] = {}
    for row, place in zip(rows, forest.places, strict=True):
        for token, position in zip(row, place.tolist(), strict=True):
            assert tokens.setdefault(position, token) == token
    assert sorted(tokens) == list(range(forest.tokens))
    assert forest.tokens == len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})
    assert all(s.start < s.stop and s.parent < number for number, s in enumerate(forest.segments))
    assert [s.start for s in forest.segments] == [0, *(s.stop for s in forest.segments[:-1])][: len(forest.segments)]
    for place in forest.places:
        seen: list[int] = []
        number = next(i for i, s in enumerate(forest.segments) if s.start <= place[-1] < s.stop)
        while number >= 0:
            segment = forest.segments[number]
            seen[:0] = range(segment.start, segment.stop)
            number = segment.parent
        assert seen[: len(place)] == place.tolist()


@pytest.mark.parametrize(("lengths", "shared"), [([3], [1]), ([3, 2], [0, 3]), ([2, 3], [0, 3]), ([2], [-1])])
def test_more_tokens_than_there_are_cannot_be_shared(lengths: list[int], shared: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot share"):
        plant(lengths, shared)
