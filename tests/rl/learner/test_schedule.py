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


@pytest.mark.parametrize("decay", ["none", "linear"])
def test_without_a_warm_up_the_first_step_has_the_full_rate(decay: str) -> None:
    assert learning_rate(OptimizerConfig(lr=1.0, decay=decay), 0, 4) == 1.0


def test_a_run_that_ends_within_its_warm_up_rises_to_the_end() -> None:
    cfg = OptimizerConfig(lr=1.0, warmup_steps=4, decay="linear")
    assert [learning_rate(cfg, step, 2) for step in (0, 1)] == [0.25, 0.5]
    assert [learning_rate(cfg, step, 4) for step in (2, 3)] == [0.75, 1.0]


def test_the_decay_reaches_zero_after_the_last_step() -> None:
    for warmup_steps in (0, 2, 6):
        assert learning_rate(OptimizerConfig(lr=1.0, warmup_steps=warmup_steps, decay="linear"), 6, 6) == 0.0
