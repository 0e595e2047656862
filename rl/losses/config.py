"""The recipe's `loss:` section, and the specification of a stage's objective."""

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
    """A stage's objective: a loss, and the correction that is applied to its tokens."""

    loss: LossSettings
    correction: CorrectionSettings


SUPERVISED = ObjectiveSpec(
    loss=LossSettings(name="rl.losses.sft:cross_entropy"), correction=CorrectionSettings(name="none")
)
"""The objective of the supervised stage. Its loss is on demonstrations, so it is not in the registry: recipes choose
among losses on sampled tokens."""
