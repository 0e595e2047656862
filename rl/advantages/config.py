"""The recipe's `algorithm:` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewards.strict import StrictModel


class AlgorithmConfig(StrictModel):
    name: Literal["grpo", "reinforce"] = "grpo"
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    normalize_std: bool = True
