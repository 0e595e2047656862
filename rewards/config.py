"""The recipe's `rewards:` section."""

from __future__ import annotations

from pydantic import Field

from rewards.strict import StrictModel


class RewardConfig(StrictModel):
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each named reward part (rewards.compose); a part not named here weighs 1."""
