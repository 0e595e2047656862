"""The recipe's `loss:` section, and what a stage minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from rewards.strict import Named
from rl.corrections.config import CorrectionSettings


class LossSettings(Named):
    """The base of every loss's settings; `loss: NAME` is short for `loss: {name: NAME}`."""

    kind: ClassVar[str] = "loss"


class ClippedSettings(LossSettings):
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Importance ratios are clipped below 1 - clip_low."""
    clip_high: float = Field(default=0.28, gt=0)
    """Importance ratios are clipped above 1 + clip_high."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSpec:
    """What a stage minimises: a loss, and the correction that its tokens pass."""

    loss: LossSettings
    correction: CorrectionSettings


SUPERVISED = ObjectiveSpec(
    loss=LossSettings(name="rl.losses.sft:cross_entropy"), correction=CorrectionSettings(name="none")
)
"""The loss is not in the registry: recipes choose among losses of what the policy sampled, and this one is of
demonstrations."""
