"""When something that happens every so many steps is due."""

from __future__ import annotations

import pytest

from rl.driver.steps import due


@pytest.mark.parametrize(
    ("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4]), (6, [6]), (7, [])]
)
def test_every_so_many_steps_and_at_the_last_one_too(every: int, steps: list[int]) -> None:
    """A run of 6 steps. The last push is verified like any other; the loop itself leaves out its last evaluation."""
    assert [step for step in range(1, 7) if due(step, every)] == steps
