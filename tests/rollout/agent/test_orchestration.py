"""The benchmark of orchestration still runs against agent loop and buffer as they are. Its checks are its own."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from benchmarks.orchestration import GROUP, STALENESS, virtual


@pytest.fixture
def own_gc() -> Iterator[None]:
    """The benchmark changes the garbage collector of its process."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("own_gc")
def test_a_few_trajectories_go_through_in_virtual_time() -> None:
    trajectories = 2 * GROUP * (STALENESS + 1)
    row = virtual(trajectories)
    assert row.startswith(f"| {trajectories} | {trajectories} |") and row.endswith("| 2 |")
