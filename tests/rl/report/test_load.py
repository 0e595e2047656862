from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.report.load import BINS, Load
from rollout.types import Span

T0 = 1.7e9
times = st.floats(min_value=0, max_value=100).map(lambda t: T0 + t)


@given(st.lists(st.tuples(times, times).map(sorted), min_size=1, max_size=20))
def test_the_average_number_of_open_spans_is_right_in_every_part(spans: list[list[float]]) -> None:
    load = Load()
    load.add(Span(name="generate", start=start, end=end) for start, end in spans)
    found = np.array(load.averages(100, lambda times: times - T0)["generate"])
    edges = np.linspace(T0, T0 + 100, BINS + 1)
    overlaps = [
        np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None) / (100 / BINS)
        for start, end in spans
    ]
    assert found == pytest.approx(np.sum(overlaps, axis=0), abs=1e-3)


def test_spans_of_another_clock_are_left_out() -> None:
    load = Load()
    load.add([Span(name="generate", start=5.0, end=9.0)])
    assert load.bounds() is None


def test_the_bounds_are_those_of_all_stages() -> None:
    load = Load()
    load.add([Span(name="generate", start=T0 + 3, end=T0 + 4), Span(name="reward", start=T0 + 4, end=T0 + 7)])
    assert load.bounds() == (T0 + 3, T0 + 7)
