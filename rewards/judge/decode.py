"""Reads plain values (`rewards.judge.wire`) from bytes that anybody may have written."""

from __future__ import annotations

import builtins
from _struct import unpack

from rewards.judge.wire import (
    CONVERTED,
    MAX_DEPTH,
    MAX_EQUAL_HASHES,
    MAX_FRACTION_BYTES,
    MAX_INT_BYTES,
    MAX_ITEMS,
    Shared,
    Side,
    WireError,
    kind_of,
    travels_by_name,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Decoder:
    """Reads what an encoder wrote. Every length is checked, so any bytes end in a value or a WireError."""

    def __init__(self, side: Side, shared: Shared, data: bytes) -> None:
        self._side = side
        self._shared = shared
        self._data = data
        self._at = self._items = 0

    def read(self, depth: int = 0) -> Any:
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise WireError(f"a value is nested deeper than {MAX_DEPTH} or has more than {MAX_ITEMS} items")
        tag = self._take(1)
        try:
            return READERS[tag](self, depth)
        except WireError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise WireError(f"a value cannot be read: {error}") from None

    def fill(self, into: Any) -> None:
        """Read the contents of a mutable container that is there already."""
        tag, kind = self._take(1), kind_of(into)
        if tag != {list: b"L", dict: b"D", set: b"S", bytearray: b"Y", None: b"D"}[kind]:
            raise WireError("the contents of an argument are of another kind")
        self._into(into if kind is not None else vars(into), kind or dict, 0)
        if kind is None:
            _check_attributes(into)

    def _take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise WireError("a message ends in the middle of a value")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def _sized(self) -> bytes:
        return self._take(self.number())

    def _int(self) -> int:
        data = self._sized()
        if len(data) > MAX_INT_BYTES + 1:
            raise WireError(f"a number takes more than {MAX_INT_BYTES} bytes")
        return int.from_bytes(data, "big", signed=True)

    def _sequence(self, depth: int) -> list[Any]:
        count = self.number()
        if count > MAX_ITEMS:
            raise WireError(f"a value has more than {MAX_ITEMS} items")
        return [self.read(depth + 1) for _ in range(count)]

    def _into(self, value: Any, kind: Any, depth: int) -> None:
        """Read what a container of this built-in type, or of one derived from it, holds."""
        if kind is bytearray:
            value[:] = self._sized()
            return
        if kind is dict:
            items = [(self.read(depth + 1), self.read(depth + 1)) for _ in range(min(self.number(), MAX_ITEMS))]
            _check_hashes([key for key, _ in items])
        else:
            items = self._sequence(depth)
            _check_hashes(items if kind is set else [])
        kind.clear(value)
        (kind.extend if kind is list else kind.update)(value, items)

    def _fresh(self, kind: Any, depth: int) -> Any:
        value: Any = kind()
        self._shared.add(value)
        self._into(value, kind, depth)
        return value

    def _frozenset(self, depth: int) -> frozenset[Any]:
        items = self._sequence(depth)
        _check_hashes(items)
        return frozenset(items)

    def _reference(self) -> Any:
        number = self.number()
        if number >= len(self._shared.objects):
            raise WireError("a value refers to nothing")
        return self._shared.objects[number]

    def _builtin(self) -> Any:
        name = self._sized().decode()
        value = getattr(builtins, name, None)
        if not travels_by_name(value, name):
            raise WireError(f"{name[:40]!r} does not travel")
        return value

    def _converted(self, depth: int) -> Any:
        module, _, name = self._sized().decode().rpartition(".")
        if (module, name) not in CONVERTED:
            raise WireError(f"{name[:40]!r} does not travel")
        from importlib import import_module

        arguments = self.read(depth + 1)
        # An object of the answer would be asked while it is read, and large fractions take for ever.
        handles = [argument for argument in arguments if type(argument).__name__ == "Proxy"]
        large = name == "Fraction" and any(part.bit_length() > 8 * MAX_FRACTION_BYTES for part in arguments)
        if type(arguments) is not tuple or handles or large:
            raise WireError(f"{name} is not made of this")
        return getattr(import_module(module), name)(*arguments)

    def _record(self, depth: int) -> Any:
        name = self._sized().decode()
        if name not in self._side.records:
            raise WireError(f"there is no class {name[:40]!r}")
        value: Any = object.__new__(self._side.records[name])
        self._shared.add(value)
        if self._take(1) != b"D":
            raise WireError("an object has no attributes")
        self._into(vars(value), dict, depth)
        _check_attributes(value)
        return value

    def _member(self) -> Any:
        name = self._sized().decode()
        members = getattr(self._side.records.get(name), "__members__", {})
        if self._take(1) != b"s":
            raise WireError("a member has no name")
        return members[self._sized().decode()]

    def _handle(self) -> Any:
        number = self.number()
        if self._take(1) != b"s":
            raise WireError("a handle has no description")
        return self._side.foreign(number, self._sized().decode("utf-8", "replace"))


def _check_hashes(keys: list[Any]) -> None:
    """Refuse keys that are made to collide: putting them into a table would take the square of their number."""
    counts: dict[int, int] = {}
    for key in keys:
        hashed = hash(key)
        counts[hashed] = counts.get(hashed, 0) + 1
        if counts[hashed] > MAX_EQUAL_HASHES:
            raise WireError(f"more than {MAX_EQUAL_HASHES} keys have the same hash")


def _check_attributes(value: Any) -> None:
    """Refuse attributes that take the place of the methods of a class that the tests trust."""
    for name in vars(value):
        if type(name) is not str or callable(getattr(type(value), name, None)):
            raise WireError(f"an object hides {str(name)[:40]!r} of its class")


def _float_pair(decoder: Decoder) -> complex:
    return complex(*unpack(">2d", decoder._take(16)))


READERS: dict[bytes, Callable[[Decoder, int], Any]] = {
    b"N": lambda d, _: None,
    b"T": lambda d, _: True,
    b"F": lambda d, _: False,
    b".": lambda d, _: Ellipsis,
    b"i": lambda d, _: d._int(),
    b"f": lambda d, _: unpack(">d", d._take(8))[0],
    b"c": lambda d, _: _float_pair(d),
    b"s": lambda d, _: d._sized().decode("utf-8", "surrogatepass"),
    b"b": lambda d, _: d._sized(),
    b"t": lambda d, depth: tuple(d._sequence(depth)),
    b"z": lambda d, depth: d._frozenset(depth),
    b"r": lambda d, depth: range(*d._sequence(depth)),
    b"L": lambda d, depth: d._fresh(list, depth),
    b"D": lambda d, depth: d._fresh(dict, depth),
    b"S": lambda d, depth: d._fresh(set, depth),
    b"Y": lambda d, depth: d._fresh(bytearray, depth),
    b"&": lambda d, _: d._reference(),
    b"B": lambda d, _: d._builtin(),
    b"X": lambda d, depth: d._converted(depth),
    b"R": lambda d, depth: d._record(depth),
    b"E": lambda d, _: d._member(),
    b"o": lambda d, _: d._side.own(d.number()),
    b"h": lambda d, _: d._handle(),
}
