"""No correction."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.batch.tensors import Predictions
from rl.corrections.common import Correction
from rl.corrections.config import CorrectionSettings


def none(difference: Tensor, batch: Predictions, settings: CorrectionSettings) -> Correction:
    """Keep every token with the factor 1. `difference` [M] is log policy - log behaviour policy, detached."""
    return Correction(torch.ones_like(difference), torch.ones_like(difference, dtype=torch.bool))
