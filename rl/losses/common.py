"""What losses share."""

from __future__ import annotations

from torch import Tensor

from rl.batch.tensors import BatchTensors

LOG_RATIO_LIMIT = 20.0
"""|log importance ratio| is cut here, so that exp stays finite in float32 (e^20 = 4.9e8) and one broken token gives no
inf * 0 = NaN. Beyond it the token has no gradient. A NaN logprob is not hidden: it reaches the loss."""


def log_ratio(logprobs: Tensor, batch: BatchTensors) -> Tensor:
    """[T] log of the importance ratio policy / behaviour policy, cut at LOG_RATIO_LIMIT; 0 where nothing is trained."""
    difference = (logprobs - batch.behaviour_logprobs).where(batch.loss_mask > 0, logprobs.new_zeros(()))
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
