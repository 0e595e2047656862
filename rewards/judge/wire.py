"""Plain values as bytes, between the process that runs tests and the one that runs an answer.

Only what has a tag below travels as a value, and decoding builds fresh objects of Python's own types, so nothing of an
object's behaviour comes along: an object that says it equals everything arrives as the number or text it is derived
from, or as a handle. Mutable containers are numbered in the order in which they are first met, so that two places that
hold the same list hold the same list on the other side, too, and so that what the answer changes in an argument can be
sent back as the contents of a number.

This runs inside both sandboxes (`rewards.judge.runtime`), so it imports next to nothing.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_BYTES = 8 << 20
MAX_ITEMS = 500_000
MAX_DEPTH = 150
MAX_EQUAL_HASHES = 64
MAX_INT_BYTES = 1 << 17
MAX_FRACTION_BYTES = 1 << 12
NAMED_BUILTINS = {
    "abs", "all", "any", "bin", "bool", "bytes", "callable", "chr", "complex", "dict", "divmod", "enumerate", "filter",
    "float", "format", "frozenset", "hash", "hex", "id", "int", "isinstance", "len", "list", "map", "max", "min", "oct",
    "ord", "pow", "print", "range", "repr", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "type", "zip",
}  # fmt: skip
"""Functions and types that travel by their name."""


class WireError(Exception):
    """A value is too large, too deep or of no kind that travels, or bytes are not what an encoder writes."""


class Shared:
    """The mutable containers of one request and its answer, by number."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def number(self, value: Any) -> int | None:
        return self._numbers.get(id(value))

    def add(self, value: Any) -> None:
        self._numbers[id(value)] = len(self.objects)
        self.objects.append(value)  # kept, so that no other object gets its id


class Side:
    """What encoding and decoding ask of the process they run in.

    `export` gives an object that does not travel a number, `own` is that object again, and `foreign` stands for an
    object of the other side. `records` are the classes, by name, whose instances travel as their attributes, or, of an
    enumeration, by their name.
    """

    records: dict[str, type]
    by_handle: tuple[type, ...] = ()
    """Classes whose instances never travel, though they are derived from a plain type."""

    def export(self, value: Any) -> tuple[int, str]:
        raise NotImplementedError

    def own(self, number: int) -> Any:
        raise NotImplementedError

    def foreign(self, number: int, kind: str) -> Any:
        raise NotImplementedError

    def foreign_number(self, value: Any) -> int | None:
        """The number of an object of the other side; None for any other object."""
        raise NotImplementedError


CONVERTED: dict[tuple[str, str], Callable[[Any], tuple[Any, ...]]] = {
    ("decimal", "Decimal"): lambda value: (str(value),),
    ("fractions", "Fraction"): lambda value: (value.numerator, value.denominator),
    ("collections", "deque"): lambda value: (list(value), value.maxlen),
    ("collections", "Counter"): lambda value: (dict(value),),
    ("collections", "OrderedDict"): lambda value: (list(value.items()),),
    ("collections", "defaultdict"): lambda value: (value.default_factory, dict(value)),
    ("datetime", "date"): lambda value: (value.year, value.month, value.day),
    ("datetime", "timedelta"): lambda value: (value.days, value.seconds, value.microseconds),
    ("datetime", "datetime"): lambda value: (
        value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond,
        None if value.tzinfo is None else sys.modules["datetime"].timezone(value.utcoffset()),
    ),
    ("datetime", "timezone"): lambda value: (value.utcoffset(None),),
}  # fmt: skip
"""Types of the standard library, and how to make them again: by their class, called with these arguments. What the
answer changes in one of them is not sent back."""

_KINDS = (
    type(None), bool, int, float, complex, str, bytes, tuple, frozenset, range, list, dict, set, bytearray
)  # fmt: skip


def kind_of(value: Any) -> Any:
    """The built-in type as which a value travels; None for others. `type` cannot be fooled, unlike `isinstance`."""
    kind = type(value)
    if kind in _KINDS:
        return kind
    return next((known for known in _KINDS if known in type.__dict__["__mro__"].__get__(kind)), None)


def travels_by_name(value: Any, name: str) -> bool:
    is_exception = isinstance(value, type) and issubclass(value, BaseException)
    return value is not None and (name in NAMED_BUILTINS or is_exception)
