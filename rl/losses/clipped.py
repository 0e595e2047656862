"""PPO's clipped surrogate on single tokens, with limits on both sides."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.batch.tensors import BatchTensors, TokenLoss
from rl.losses.common import log_ratio
from rl.losses.config import ClippedSettings


def clipped(logprobs: Tensor, entropy: Tensor, batch: BatchTensors, settings: ClippedSettings) -> TokenLoss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = policy / behaviour policy.

    Schulman et al. 2017 (PPO, eq. 7) on single tokens, as in GRPO (Shao et al. 2024), with the two-sided limits of DAPO
    (Yu et al. 2025). The ratio is against the logprobs the tokens were sampled with, so it also corrects for weights
    that moved while a rollout was under way.

    Returns:
        The loss, and the statistics `clipped` (the clip was the smaller term), `ratio`, and `kl`: the k3 estimate
        r - 1 - log r of KL(behaviour || policy) (Schulman 2020, joschu.net/blog/kl-approx.html).
    """
    log_r = log_ratio(logprobs, batch)
    ratio = log_r.exp()
    unclipped = ratio * batch.advantages
    limited = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high) * batch.advantages
    return TokenLoss(
        -torch.minimum(unclipped, limited),
        # expm1: for a log ratio near 0 the difference of ratio and 1 would be rounding noise.
        {"clipped": limited < unclipped, "ratio": ratio, "kl": log_r.expm1() - log_r},
    )
