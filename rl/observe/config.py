"""The recipe's `wandb:` and `alerts:` sections."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewards.strict import StrictModel


class WandbConfig(StrictModel):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when WANDB_API_KEY is set, else offline."""
    project: str = "sluice"
    entity: str | None = None
    group: str | None = None


class AlertsConfig(StrictModel):
    """When a step is told as a danger to the run, on the console and through wandb. null: never."""

    mismatch: float | None = Field(default=0.1, gt=0)
    """Mean |engine logprob - trainer logprob| of fresh tokens, in nats, above which they disagree."""
    entropy_share: float | None = Field(default=0.05, gt=0, lt=1)
    """The policy's entropy has collapsed below this share of that of the first step."""
    failures: float | None = Field(default=0.25, gt=0, lt=1)
    """The share of a step's trajectories lost to infrastructure above which somebody should look."""
