"""Learning rates, worked by hand."""

from __future__ import annotations

import pytest

from rl.learner.config import OptimizerConfig
from rl.learner.schedule import learning_rate


def test_warm_up_then_constant() -> None:
    cfg = OptimizerConfig(lr=0.4, warmup_steps=4)
    assert [learning_rate(cfg, step, 10) for step in (0, 1, 3, 4, 9)] == pytest.approx([0.1, 0.2, 0.4, 0.4, 0.4])


def test_linear_decay_starts_after_the_warm_up_and_never_reaches_zero_in_a_step() -> None:
    cfg = OptimizerConfig(lr=1.0, warmup_steps=2, decay="linear")
    assert [learning_rate(cfg, step, 6) for step in (0, 1, 2, 3, 5)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.25])
