"""Values arrive as they were, as fresh objects; bytes of any kind end in a value or an error."""

from __future__ import annotations

import collections
import contextlib
import datetime
import decimal
import enum
import fractions
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.judge.decode import Decoder
from rewards.judge.encode import Encoder
from rewards.judge.wire import MAX_DEPTH, Shared, Side, WireError


class Here(Side):
    """A side that holds exported objects, and stands for the other one, too."""

    def __init__(self) -> None:
        self.records = {"Node": Node}
        self.objects: list[Any] = []

    def export(self, value: Any) -> tuple[int, str]:
        self.objects.append(value)
        return len(self.objects) - 1, type(value).__name__

    def own(self, number: int) -> Any:
        return self.objects[number]

    def foreign(self, number: int, kind: str) -> Any:
        return ("handle", number, kind)

    def foreign_number(self, value: Any) -> int | None:
        return None


class Node:
    def __init__(self, value: Any, next_one: Any = None) -> None:
        self.value, self.next = value, next_one


def encoded(value: Any, side: Side | None = None, shared: Shared | None = None) -> bytes:
    encoder = Encoder(side or Here(), shared or Shared())
    encoder.write(value)
    return encoder.message()


def there_and_back(value: Any) -> Any:
    return Decoder(Here(), Shared(), encoded(value)).read()


ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 5000), 1 << 5000),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9)),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.dates(),
    st.datetimes(timezones=st.none() | st.just(datetime.UTC)).map(lambda when: when.replace(fold=0)),
    st.timedeltas(),
)
KEYS = st.integers() | st.text() | st.tuples(st.integers(), st.text()) | st.frozensets(st.integers())
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner) | st.sets(KEYS),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_a_plain_value_arrives_as_it_was(value: Any) -> None:
    back = there_and_back(value)
    assert back == value and type(back) is type(value)


@settings(max_examples=500, deadline=None)
@given(
    st.binary(max_size=60) | VALUES.map(encoded).flatmap(lambda data: st.integers(0, len(data)).map(lambda n: data[:n]))
)
def test_any_bytes_end_in_a_value_or_an_error(data: bytes) -> None:
    with contextlib.suppress(WireError, LookupError):  # LookupError: this test's own `own`
        Decoder(Here(), Shared(), data).read()


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, "\ud800\n", b"", (), [[]], {(): None}, bytearray(b"x")])
def test_special_values(value: Any) -> None:
    assert repr(there_and_back(value)) == repr(value)


def test_not_a_number() -> None:
    assert math.isnan(there_and_back(math.nan))


class Lying(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Colour(enum.IntEnum):
    RED = 3


def test_derived_types_arrive_as_what_they_are_derived_from() -> None:
    assert type(there_and_back(Lying(3))) is int and there_and_back(Lying(3)) != 4
    assert type(there_and_back(Colour.RED)) is int
    pair = collections.namedtuple("pair", "a b")
    assert there_and_back([collections.Counter("aab"), pair(1, 2)]) == [{"a": 2, "b": 1}, (1, 2)]
    assert there_and_back(collections.deque([1, 2], 5)) == collections.deque([1, 2])
    assert there_and_back(decimal.Decimal("1.50")).as_tuple().exponent == -2
    assert there_and_back(fractions.Fraction(1, 3)) == fractions.Fraction(1, 3)
    assert there_and_back(datetime.date(2026, 1, 2)) == datetime.date(2026, 1, 2)
    assert there_and_back([len, int, ValueError, Ellipsis]) == [len, int, ValueError, Ellipsis]


def test_the_same_container_stays_the_same() -> None:
    inner: list[Any] = [1]
    outer = [inner, inner]
    inner.append(outer)
    back = there_and_back(outer)
    assert back[0] is back[1] and back[0][1] is back


def test_instances_of_classes_that_both_sides_have_travel_as_their_attributes() -> None:
    back = there_and_back(Node(1, Node("two")))
    assert type(back) is Node and (back.value, back.next.value, back.next.next) == (1, "two", None)


def test_other_objects_are_handles() -> None:
    side = Here()
    one = object()
    assert Decoder(Here(), Shared(), encoded([one], side)).read() == [("handle", 0, "object")]
    assert side.objects == [one]


def test_contents_go_back_into_the_containers_they_came_from() -> None:
    here, there = Shared(), Shared()
    numbers, table, node = [3, 1], {"a": {1}}, Node(5)
    sent = encoded((numbers, table, node), shared=here)
    theirs = Decoder(Here(), there, sent).read()
    theirs[0].sort()
    theirs[1]["a"].add(2)
    theirs[1]["b"] = theirs[0]
    theirs[2].value = 6
    encoder = Encoder(Here(), there)
    count = len(there.objects)
    for container in list(there.objects):
        encoder.contents(container)
    decoder = Decoder(Here(), here, encoder.message())
    for container in here.objects[:count]:
        decoder.fill(container)
    assert numbers == [1, 3] and table == {"a": {1, 2}, "b": numbers} and table["b"] is numbers and node.value == 6


def test_bounds() -> None:
    deep: list[Any] = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    for value, message in ((deep, "nested deeper"), (b"x" * (9 << 20), "bytes"), ([0] * 500_001, "items")):
        with pytest.raises(WireError, match=message):
            encoded(value)
    with pytest.raises(WireError, match="the same hash"):
        there_and_back({(2**61 - 1) * i: 0 for i in range(100)})
