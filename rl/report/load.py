"""How many trajectories were doing what at each time of a run: from their spans."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from rollout.types import Span

Times = npt.NDArray[np.float64]
Clock = Callable[[Times], Times]

BINS = 1200
_EPOCH = 1e9
"""Spans that began before this are not in seconds since 1970; an older version of Sluice wrote them."""


class Load:
    """Collects spans, then says how many were open on average in each of `BINS` equal parts of the run."""

    def __init__(self) -> None:
        self._starts: dict[str, array[float]] = {}
        self._ends: dict[str, array[float]] = {}

    def add(self, spans: Iterable[Span]) -> None:
        for span in spans:
            if span.start > _EPOCH:
                self._starts.setdefault(span.name, array("d")).append(span.start)
                self._ends.setdefault(span.name, array("d")).append(span.end)

    def bounds(self) -> tuple[float, float] | None:
        """The first start and the last end; None without a span."""
        if not self._starts:
            return None
        return min(map(min, self._starts.values())), max(map(max, self._ends.values()))

    def averages(self, length: float, clock: Clock) -> dict[str, list[float]]:
        """By name of the span the average number of open ones in each part of the time from 0 to `length`. `clock`
        gives that time for seconds since 1970."""
        edges = np.linspace(0, length, BINS + 1)
        width = max(length / BINS, 1e-9)

        def elapsed(moments: array[float]) -> Times:
            return _elapsed(edges, clock(np.asarray(moments)))

        return {
            name: np.round(np.diff(elapsed(self._starts[name]) - elapsed(self._ends[name])) / width, 3)
            .clip(min=0)
            .tolist()
            for name in sorted(self._starts)
        }


def _elapsed(times: Times, since: Times) -> Times:
    """At each time the sum, over all moments before it, of the seconds since that moment."""
    moments = np.sort(since)
    origin = times[0]
    sums = np.concatenate([[0.0], np.cumsum(moments - origin)])
    count = np.searchsorted(moments, times, side="right")
    elapsed: Times = count * (times - origin) - sums[count]
    return elapsed
