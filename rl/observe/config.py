"""The recipe's `wandb:` section."""

from __future__ import annotations

from typing import Literal

from rewards.strict import StrictModel


class WandbConfig(StrictModel):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when WANDB_API_KEY is set, else offline."""
    project: str = "sluice"
    entity: str | None = None
    group: str | None = None
