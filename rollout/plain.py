"""Plain values: what JSON can hold, so that it can travel between processes, be stored, and be read back the same.

Whatever a dataset, an environment or a model makes is made plain where it enters (`plain`), not where it is written:

- texts, booleans, null, integers and finite numbers stay as they are;
- lists, tuples and NumPy arrays become lists, mappings become dictionaries, whose keys must be texts;
- NumPy numbers become numbers, dates and times become their ISO 8601 texts;
- everything else is refused, and named: bytes, decimals, durations, sets, NaN and infinity, objects, integers of more
  than DIGITS digits, and what is nested deeper than DEPTH.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

DEPTH = 100
"""JSON and pickle follow nested values by recursion, and fail beyond a few hundred levels."""
DIGITS = 4000
"""Python reads no integer of more than 4,300 digits from a text."""
SHOWN = 200
"""The most characters of a path that a message shows."""


def plain(value: Any, where: str) -> Any:
    """Return `value` as a plain value of its own. `where` names it: a row's field, for example.

    Raises:
        ValueError: something in it has no plain form; the message names it by its path.
    """
    return _plain(value, where, DEPTH)


def _plain(value: Any, where: str, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if depth == 0:
        raise _refused(where, f"is nested more than {DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(item, f"{where}.{key}", depth - 1) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(_from_numpy(value, where), where, depth - 1)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{number}]", depth - 1) for number, item in enumerate(value)]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return _number(value, where)


def _from_numpy(value: Any, where: str) -> Any:
    """The Python values of an array or a NumPy number, whose own `tolist` makes integers of nanoseconds."""
    if value.dtype.kind == "m":
        raise _refused(where, "is a duration, which JSON has not: write a number")
    return np.datetime_as_string(value).tolist() if value.dtype.kind == "M" else value.tolist()


def _number(value: Any, where: str) -> int | float:
    if isinstance(value, int):
        if value.bit_length() > DIGITS * math.log2(10):
            raise _refused(where, f"is an integer of more than {DIGITS} digits")
        return int(value)
    if not isinstance(value, float):
        raise _refused(where, f"is of type {type(value).__name__}, which JSON has not: write text or numbers")
    if not math.isfinite(value):
        raise _refused(where, f"is {value}, which JSON has not: write null or a text")
    return float(value)


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise _refused(where, f"has the key {key!r:.100} of type {type(key).__name__}: keys must be texts")
    return str.__str__(key)


def _refused(where: str, problem: str) -> ValueError:
    return ValueError(f"{where if len(where) <= SHOWN else where[:SHOWN] + '…'} {problem}")
