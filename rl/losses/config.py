"""The recipe's `loss:` section, and the specification of a stage's objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from rewards.strict import Named, StrictModel
from rl.corrections.config import CorrectionSettings


class LossSettings(Named):
    """The base of every loss's settings; `loss: NAME` is short for `loss: {name: NAME}`."""

    kind: ClassVar[str] = "loss"


class ClippedSettings(LossSettings):
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Importance ratios are clipped below 1 - clip_low."""
    clip_high: float = Field(default=0.28, gt=0)
    """Importance ratios are clipped above 1 + clip_high."""


Estimator = Literal["k1", "k2", "k3", "unbiased"]


class KlConfig(StrictModel):
    """The recipe's `kl:` section: keep the policy near the reference policy, the model without its adapter.

    With it groups whose rewards are all equal are trained, too, with advantages of 0 before the penalty.
    """

    coef: float = Field(gt=0)
    """The factor of the divergence, in units of the loss, or of the advantage (which an estimator may have divided by
    the rewards' deviation), for each nat."""
    estimator: Estimator
    """How a token's divergence is estimated; rl.losses.kl says where each one's gradient goes."""
    place: Literal["loss", "reward"]
    """loss: added to the loss of every trained token.  reward: taken off the advantages, less its mean over all trained
    tokens of the step, by the logprobs that the tokens were sampled with."""
    credit: Literal["token", "rest"] | None = None
    """In the reward, a token pays for its own divergence, or (rest, which null means) for its own and all that follows
    in its sample, which is the gradient of the whole sequence's divergence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSpec:
    """A stage's objective: a loss, the correction that is applied to its tokens, and the distance that it keeps from
    the reference policy."""

    loss: LossSettings
    correction: CorrectionSettings
    kl: KlConfig | None = None


SUPERVISED = ObjectiveSpec(
    loss=LossSettings(name="rl.losses.sft:cross_entropy"), correction=CorrectionSettings(name="none")
)
"""The objective of the supervised stage. Its loss is on demonstrations, so it is not in the registry: recipes choose
among losses on sampled tokens."""
