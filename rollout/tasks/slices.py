"""Parts of a split, in the way that Hugging Face datasets write them: `train`, `train[:90%]`, `test[100:-50]`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

_WRITTEN = re.compile(r"([\w.-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")
_FORM = "NAME, or NAME[FROM:TO] with row numbers or percentages, as in train[:90%]"


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of a split from one bound up to another. A bound is written as in Python, or as a percentage."""

    split: str
    begin: str | None
    end: str | None

    def bounds(self, rows: int) -> tuple[int, int]:
        """The numbers of the first row and of the one after the last, of a split with so many rows."""
        begin = 0 if self.begin is None else _absolute(self.begin, rows)
        return begin, rows if self.end is None else max(begin, _absolute(self.end, rows))

    @property
    def needs_length(self) -> bool:
        """Whether the bounds depend on how many rows there are."""
        return any(bound is not None and not bound.isdigit() for bound in (self.begin, self.end))

    def of(self, rows: Iterable[Any]) -> Iterator[Any]:
        """The part of rows that come one by one. Without `needs_length` none after the last one is read."""
        if self.needs_length:
            every = list(rows)
            return iter(every[slice(*self.bounds(len(every)))])
        return islice(rows, int(self.begin or 0), None if self.end is None else int(self.end))


def parse_slice(text: str) -> Slice:
    """Raises ValueError if the text names no part of a split."""
    found = _WRITTEN.fullmatch(text.replace(" ", ""))
    if found is None:
        raise ValueError(f"{text!r:.100} is no part of a split; write {_FORM}")
    for bound in found.groups()[1:]:
        if bound and bound.endswith("%") and not -100 <= int(bound[:-1]) <= 100:
            raise ValueError(f"{text!r:.100}: a percentage is between -100 and 100")
    return Slice(*found.groups())


def _absolute(bound: str, rows: int) -> int:
    number = round(rows * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
    return min(max(number + rows if number < 0 or bound.startswith("-") else number, 0), rows)
