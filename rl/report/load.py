"""How many trajectories were doing what at each time of a run: from their spans."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from rollout.types import Span

BINS = 1200
_EPOCH = 1e9
"""Spans that began before this are not in seconds since 1970; an older version of Sluice wrote them."""


class Load:
    """Collects spans, then says how many were open on average in each of `BINS` equal parts of the run."""

    def __init__(self) -> None:
        self._starts: dict[str, list[float]] = {}
        self._ends: dict[str, list[float]] = {}

    def add(self, spans: Iterable[Span]) -> None:
        for span in spans:
            if span.start > _EPOCH:
                self._starts.setdefault(span.name, []).append(span.start)
                self._ends.setdefault(span.name, []).append(span.end)

    def bounds(self) -> tuple[float, float] | None:
        """The first start and the last end; None without a span."""
        if not self._starts:
            return None
        return min(map(min, self._starts.values())), max(map(max, self._ends.values()))

    def averages(self, start: float, end: float) -> dict[str, list[float]]:
        """By name of the span the average number of open ones in each part of the time from `start` to `end`."""
        edges = np.linspace(start, end, BINS + 1)
        width = max((end - start) / BINS, 1e-9)
        return {
            name: np.round(np.diff(_elapsed(edges, self._starts[name]) - _elapsed(edges, self._ends[name])) / width, 3)
            .clip(min=0)
            .tolist()
            for name in sorted(self._starts)
        }


def _elapsed(times: npt.NDArray[np.float64], since: list[float]) -> npt.NDArray[np.float64]:
    """At each time the sum, over all moments before it, of the seconds since that moment."""
    moments = np.sort(np.asarray(since))
    origin = times[0]
    sums = np.concatenate([[0.0], np.cumsum(moments - origin)])
    count = np.searchsorted(moments, times, side="right")
    elapsed: npt.NDArray[np.float64] = count * (times - origin) - sums[count]
    return elapsed
