"""PPO's clipped surrogate on single tokens, with separate lower and upper limits."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.batch.tensors import Predictions, TokenLoss
from rl.losses.common import log_ratio
from rl.losses.config import ClippedSettings


def clipped(logprobs: Tensor, entropy: Tensor, batch: Predictions, settings: ClippedSettings) -> TokenLoss:
    """Return -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) for every token, with r = policy / behaviour policy.

    Schulman et al. 2017 (PPO, eq. 7) on single tokens, as in GRPO (Shao et al. 2024), with the two limits of DAPO (Yu
    et al. 2025). r is taken against the logprobs that the tokens were sampled with, so it also corrects for weights
    that changed during a rollout.

    Returns:
        The loss, and the statistics `clipped` (whether the clipped term is the smaller one), `ratio`, and `kl`: the k3
        estimate r - 1 - log r of KL(behaviour || policy) (Schulman 2020, joschu.net/blog/kl-approx.html).
    """
    log_r = log_ratio(logprobs, batch)
    ratio = log_r.exp()
    unclipped = ratio * batch.advantages
    limited = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high) * batch.advantages
    return TokenLoss(
        -torch.minimum(unclipped, limited),
        # Use expm1, because ratio - 1 would be rounding noise when the log ratio is near 0.
        {"clipped": limited < unclipped, "ratio": ratio, "kl": log_r.expm1() - log_r},
    )
