"""Code that losses share."""

from __future__ import annotations

from torch import Tensor

from rl.batch.tensors import Predictions

LOG_RATIO_LIMIT = 20.0
"""Log importance ratios are clamped to ± this limit, so that exp stays finite in float32 (e^20 = 4.9e8) and one broken
token cannot give inf * 0 = NaN. A token beyond it has no gradient. A NaN logprob is not hidden: it reaches the loss."""


def log_ratio(logprobs: Tensor, batch: Predictions) -> Tensor:
    """The log importance ratio [M], log policy - log behaviour policy, clamped to ±LOG_RATIO_LIMIT."""
    return (logprobs - batch.behaviour_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
