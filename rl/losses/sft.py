"""Cross-entropy of demonstrations."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.batch.tensors import BatchTensors
from rl.losses.common import detached_sums, require_positive


def sft_loss(
    logprobs: Tensor, entropy: Tensor, batch: BatchTensors, denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum(mask * logprob) / denominator: cross-entropy of the demonstrations' masked tokens.

    Arguments and errors as in `policy_loss`; the sums are `tokens` and `entropy`.
    """
    require_positive(denominator)
    trained = batch.loss_mask > 0
    zero = logprobs.new_zeros(())
    loss = -torch.where(trained, logprobs, zero).sum() / denominator
    return loss, detached_sums({"tokens": trained, "entropy": torch.where(trained, entropy, zero)})
