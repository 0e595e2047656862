"""What losses share."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""|log importance ratio| is cut here, so that exp stays finite in float32 (e^20 = 4.9e8) and one broken token gives no
inf * 0 = NaN. Beyond it the token has no gradient. A NaN logprob is not hidden: it reaches the loss."""


def require_positive(denominator: float) -> None:
    if denominator <= 0:
        raise ValueError(f"denominator={denominator}: the step has no token to train, skip it")


def detached_sums(per_token: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.detach().sum(dtype=torch.float32) for name, values in per_token.items()}
