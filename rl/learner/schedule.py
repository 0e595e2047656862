"""The learning rate of a step: a pure function, so a resumed run needs no scheduler state."""

from __future__ import annotations

from rl.learner.config import OptimizerConfig


def learning_rate(cfg: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step `step`, counted from 0, of `steps`.

    It rises linearly over `warmup_steps`. Then it is constant, or falls linearly to zero, reached after the last step.
    """
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    if cfg.decay == "none":
        return cfg.lr
    return cfg.lr * (steps - step) / max(steps - cfg.warmup_steps, 1)
