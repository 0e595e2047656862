"""Losses: pure functions from one micro-batch's logprobs to a scalar and the sums worth reporting.

Every loss is a sum over the micro-batch's trained tokens divided by one denominator, the trained tokens of the whole
step over all ranks (`rl.batch.denominator`). So the step's loss and gradient are the plain sum over micro-batches and
ranks, and no packing changes them (invariant 3). Means, and all arithmetic over ranks, belong to the caller.

Statistics are detached sums (0-dim float tensors) under the same names in every batch, fillers included. Positions
with mask 0 contribute nothing, whatever stands there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.batch import PackedBatch

LOG_RATIO_LIMIT = 20.0
"""|log importance ratio| is cut here, so that exp stays finite in float32 (e^20 = 4.9e8) and one broken token gives no
inf * 0 = NaN. Beyond it the token has no gradient. A NaN logprob is not hidden: it reaches the loss."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchTensors:
    """`rl.batch.PackedBatch` on a device: same names, shapes, types and alignment."""

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    labels: Tensor
    loss_mask: Tensor
    advantages: Tensor
    behaviour_logprobs: Tensor
    versions: Tensor


def to_tensors(packed: PackedBatch, device: torch.device | str) -> BatchTensors:
    return BatchTensors(
        input_ids=torch.as_tensor(packed.input_ids, device=device),
        position_ids=torch.as_tensor(packed.position_ids, device=device),
        cu_seqlens=torch.as_tensor(packed.cu_seqlens, device=device),
        labels=torch.as_tensor(packed.labels, device=device),
        loss_mask=torch.as_tensor(packed.loss_mask, device=device),
        advantages=torch.as_tensor(packed.advantages, device=device),
        behaviour_logprobs=torch.as_tensor(packed.behaviour_logprobs, device=device),
        versions=torch.as_tensor(packed.versions, device=device),
    )


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
    _require_positive(denominator)
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
    return -gain.sum() / denominator, _detached_sums(sums)


def sft_loss(
    logprobs: Tensor, entropy: Tensor, batch: BatchTensors, denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum(mask * logprob) / denominator: cross-entropy of the demonstrations' masked tokens.

    Arguments and errors as in `policy_loss`; the sums are `tokens` and `entropy`.
    """
    _require_positive(denominator)
    trained = batch.loss_mask > 0
    zero = logprobs.new_zeros(())
    loss = -torch.where(trained, logprobs, zero).sum() / denominator
    return loss, _detached_sums({"tokens": trained, "entropy": torch.where(trained, entropy, zero)})


def _require_positive(denominator: float) -> None:
    if denominator <= 0:
        raise ValueError(f"denominator={denominator}: the step has no token to train, skip it")


def _detached_sums(per_token: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.detach().sum(dtype=torch.float32) for name, values in per_token.items()}
