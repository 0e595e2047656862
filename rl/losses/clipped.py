"""Losses: pure functions from one micro-batch's logprobs to a scalar and the sums worth reporting.

Every loss is a sum over the micro-batch's trained tokens divided by one denominator, the trained tokens of the whole
step over all ranks (`micro_batch.denominator`). So the step's loss and gradient are the plain sum over micro-batches
and ranks, and no packing changes them (invariant 3). Means, and all arithmetic over ranks, belong to the caller.

Statistics are detached sums (0-dim float tensors) under the same names in every batch, fillers included. Positions
with mask 0 contribute nothing, whatever stands there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl.batch.tensors import BatchTensors
from rl.losses.common import LOG_RATIO_LIMIT, detached_sums, require_positive


def policy_loss(
    logprobs: Tensor,
    entropy: Tensor,
    batch: BatchTensors,
    denominator: float,
    *,
    clip_low: float,
    clip_high: float,
    version: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum(mask * min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)) / denominator, r = policy / behaviour policy.

    PPO's clipped surrogate (Schulman et al. 2017, eq. 7) on single tokens, as in GRPO (Shao et al. 2024), with the
    two-sided limits and the token-level normalisation of DAPO (Yu et al. 2025). The ratio is against the logprobs the
    tokens were sampled with, so it also corrects for weights that moved while a rollout was under way.

    Args:
        logprobs, entropy: [T] of the current policy; only logprobs is differentiated.
        denominator: trained tokens of the step over all ranks, > 0.
        version: of the current policy. Tokens it sampled itself are *fresh*: on them engine and trainer must agree.

    Returns:
        The loss (0-dim) and the sums `tokens`, `clipped` (the clip was the smaller term), `ratio`, `kl` (k3 estimate
        r - 1 - log r of KL(behaviour || policy), Schulman 2020, joschu.net/blog/kl-approx.html), `entropy`,
        `fresh_tokens`, and `mismatch` (|logprob - behaviour logprob| over fresh tokens).

    Raises:
        ValueError: denominator is not positive.
    """
    require_positive(denominator)
    trained = batch.loss_mask > 0
    zero = logprobs.new_zeros(())
    difference = torch.where(trained, logprobs - batch.behaviour_logprobs, zero)
    log_ratio = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    unclipped = ratio * batch.advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * batch.advantages
    gain = torch.where(trained, torch.minimum(unclipped, clipped), zero)
    fresh = trained & (batch.versions == version)
    sums = {
        "tokens": trained,
        "clipped": trained & (clipped < unclipped),
        "ratio": torch.where(trained, ratio, zero),
        "kl": ratio - 1 - log_ratio,
        "entropy": torch.where(trained, entropy, zero),
        "fresh_tokens": fresh,
        "mismatch": torch.where(fresh, difference.abs(), zero),
    }
    return -gain.sum() / denominator, detached_sums(sums)
