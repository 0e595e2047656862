"""Writes plain values (`rewards.judge.wire`) as bytes."""

from __future__ import annotations

import builtins
from _struct import pack

from rewards.judge.wire import (
    CONVERTED,
    MAX_BYTES,
    MAX_DEPTH,
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
    from typing import Any


class Encoder:
    """Writes values. One encoder writes one message."""

    def __init__(self, side: Side, shared: Shared) -> None:
        self._side = side
        self._shared = shared
        self._parts: list[bytes] = []
        self._size = self._items = 0

    def message(self) -> bytes:
        return b"".join(self._parts)

    def write(self, value: Any, depth: int = 0) -> None:
        """Raises WireError."""
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise WireError(f"a value is nested deeper than {MAX_DEPTH} or has more than {MAX_ITEMS} items")
        kind, own = kind_of(value), type(value)
        converted = (own.__module__, own.__qualname__) in CONVERTED
        if kind is None or converted or own.__name__ in self._side.records or isinstance(value, self._side.by_handle):
            self._other(value, depth)
        else:
            getattr(self, f"_{kind.__name__}")(value, depth)

    def contents(self, value: Any, depth: int = 0) -> None:
        """Write what a mutable container holds."""
        kind = kind_of(value)
        if kind is bytearray:
            self._sized(b"Y", bytes(value))
        elif kind is dict:
            pairs = list(dict.items(value))
            self._head(b"D", len(pairs))
            for key, item in pairs:
                self.write(key, depth + 1)
                self.write(item, depth + 1)
        elif kind in (list, set):
            self._sequence(b"L" if kind is list else b"S", list(kind.__iter__(value)), depth)
        else:
            self.contents(vars(value), depth)

    def _head(self, tag: bytes, number: int) -> None:
        self._put(tag + number.to_bytes(4, "big"))

    def _put(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_BYTES:
            raise WireError(f"a value takes more than {MAX_BYTES} bytes")
        self._parts.append(data)

    def _sized(self, tag: bytes, data: bytes) -> None:
        if len(data) > MAX_BYTES:
            raise WireError(f"a value takes more than {MAX_BYTES} bytes")
        self._head(tag, len(data))
        self._put(data)

    def _sequence(self, tag: bytes, items: list[Any], depth: int) -> None:
        self._head(tag, len(items))
        for item in items:
            self.write(item, depth + 1)

    def _NoneType(self, value: None, depth: int) -> None:
        self._put(b"N")

    def _bool(self, value: bool, depth: int) -> None:
        self._put(b"T" if value else b"F")

    def _int(self, value: int, depth: int) -> None:
        value = int.__index__(value)
        if value.bit_length() > 8 * MAX_INT_BYTES:
            raise WireError(f"a number takes more than {MAX_INT_BYTES} bytes")
        self._sized(b"i", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))

    def _float(self, value: float, depth: int) -> None:
        self._put(b"f" + pack(">d", float.__float__(value)))

    def _complex(self, value: complex, depth: int) -> None:
        self._put(b"c" + pack(">2d", complex.__complex__(value).real, complex.__complex__(value).imag))

    def _str(self, value: str, depth: int) -> None:
        self._sized(b"s", str.encode(value, "utf-8", "surrogatepass"))

    def _bytes(self, value: bytes, depth: int) -> None:
        self._sized(b"b", bytes.__getitem__(value, slice(None)))

    def _tuple(self, value: tuple[Any, ...], depth: int) -> None:
        self._sequence(b"t", list(tuple.__iter__(value)), depth)

    def _frozenset(self, value: frozenset[Any], depth: int) -> None:
        self._sequence(b"z", list(frozenset.__iter__(value)), depth)

    def _range(self, value: range, depth: int) -> None:
        self._sequence(b"r", [value.start, value.stop, value.step], depth)

    def _container(self, value: Any, depth: int) -> None:
        number = self._shared.number(value)
        if number is not None:
            self._head(b"&", number)
            return
        self._shared.add(value)
        self.contents(value, depth)

    _list = _dict = _set = _bytearray = _container

    def _other(self, value: Any, depth: int) -> None:
        side, kind = self._side, type(value)
        name = getattr(value, "__name__", None)
        if value is Ellipsis:
            self._put(b".")
        elif isinstance(name, str) and getattr(builtins, name, None) is value and travels_by_name(value, name):
            self._sized(b"B", name.encode())
        elif (convert := CONVERTED.get((kind.__module__, kind.__qualname__))) is not None:
            self._sized(b"X", f"{kind.__module__}.{kind.__qualname__}".encode())
            self.write(convert(value), depth + 1)
        elif kind.__name__ in side.records and hasattr(kind, "__members__"):
            self._sized(b"E", kind.__name__.encode())
            self._sized(b"s", str(value.name).encode())
        elif kind.__name__ in side.records and hasattr(value, "__dict__") and kind_of(value) is None:
            self._record(value, depth)
        elif (plain := kind_of(value)) is not None and not isinstance(value, side.by_handle):
            getattr(self, f"_{plain.__name__}")(value, depth)
        elif (foreign := side.foreign_number(value)) is not None:
            self._head(b"o", foreign)
        else:
            number, described = side.export(value)
            self._head(b"h", number)
            self._sized(b"s", described.encode("utf-8", "replace"))

    def _record(self, value: Any, depth: int) -> None:
        number = self._shared.number(value)
        if number is not None:
            self._head(b"&", number)
            return
        self._shared.add(value)
        self._sized(b"R", type(value).__name__.encode())
        self.contents(vars(value), depth)
