"""The recipe's sections on who is told what: `wandb:`, `tensorboard:`, `shown:`, `alerts:`."""

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


class TensorBoardConfig(StrictModel):
    enabled: bool = False
    """Whether event files for TensorBoard are written, in the run directory's folder `tensorboard`."""


class ShownConfig(StrictModel):
    """The trajectories that wandb and TensorBoard show: messages, reward parts, versions, advantage."""

    every: int = Field(default=10, ge=0)
    """Of the first step, and of each so many-th one after it. 0: of none."""
    count: int = Field(default=8, ge=1)
    """The most of a step: of groups at even distances the best and the worst."""


class AlertsConfig(StrictModel):
    """When a step is told as a danger to the run, on the console and through wandb. null: never."""

    mismatch: float | None = Field(default=0.1, gt=0)
    """Mean |engine logprob - trainer logprob| of fresh tokens, in nats, above which they disagree."""
    entropy_share: float | None = Field(default=0.05, gt=0, lt=1)
    """The policy's entropy has collapsed below this share of that of the first step."""
    failures: float | None = Field(default=0.25, gt=0, lt=1)
    """The share of a step's trajectories lost to infrastructure above which somebody should look."""
