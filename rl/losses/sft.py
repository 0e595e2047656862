"""Cross-entropy of demonstrations, for the supervised stage."""

from __future__ import annotations

from torch import Tensor

from rl.batch.tensors import Predictions, TokenLoss
from rl.losses.config import LossSettings


def cross_entropy(logprobs: Tensor, entropy: Tensor, batch: Predictions, settings: LossSettings) -> TokenLoss:
    """The negative log-probability of each label."""
    return TokenLoss(-logprobs, {})
