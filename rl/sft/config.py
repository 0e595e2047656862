"""The recipe's `sft:` section."""

from __future__ import annotations

from pydantic import Field

from rewards.strict import StrictModel
from rl.learner.config import OptimizerConfig

ORACLE = "oracle"
"""Stands for a dataset: demonstrations in the recipe's environments, made by the environments' scripted oracles."""


class SftConfig(StrictModel):
    """A supervised stage before reinforcement learning. Its result is cached by content hash."""

    dataset: str
    """jsonl / parquet path or Hugging Face dataset with a `messages` (and optional `tools`) column, or `oracle`."""
    rows: int = Field(default=2000, ge=1)
    """At most this many demonstrations. When all have been trained, they are repeated in another order."""
    steps: int = Field(default=100, ge=1)
    tokens_per_step: int = Field(default=8192, ge=16)
    """A step takes whole demonstrations until it has this many tokens."""
    optimizer: OptimizerConfig
