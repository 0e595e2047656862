"""The recipe's `advantage:` and `aggregation:` sections."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rewards.strict import Named, StrictModel


class AdvantageSettings(Named):
    """The base of every advantage estimator's settings; `advantage: NAME` is short for `advantage: {name: NAME}`."""

    kind: ClassVar[str] = "advantage"


class GrpoSettings(AdvantageSettings):
    normalize_std: bool = True
    """Divide by the standard deviation of the group's rewards. false: very hard and very easy tasks, whose rewards
    hardly differ, are not scaled up."""


class ReinforceSettings(AdvantageSettings):
    normalize_std: bool = True
    """Divide by the standard deviation of all rewards of the step."""


class AggregationConfig(StrictModel):
    """The weight of each token in a step's loss. `aggregation: WORD` is short for `aggregation: {over: WORD}`."""

    shorthand: ClassVar[str | None] = "over"

    over: Literal["token", "sequence", "trajectory", "fixed"] = "token"
    """token: every trained token of the step weighs the same.  sequence: every sample weighs the same, and its tokens
    share its weight equally.  trajectory: every trajectory weighs the same, whatever the number of its samples.  fixed:
    every token weighs 1 / (trajectories * length), so that long answers are not diluted (Liu et al. 2025, Dr. GRPO)."""
    length: int | None = Field(default=None, ge=1)
    """The number of tokens to divide by; for `fixed` only."""
