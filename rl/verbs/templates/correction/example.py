"""Correction: sequences whose sampling policy is too far from the trained one are left out.

The engine that sampled a token and the trainer never agree exactly: other kernels, other weights. A correction is a
function from the difference of their log-probabilities to a factor for the loss of each token, and the tokens that are
kept. A rejected token's loss counts as 0, and the denominator of the step's loss stays as it is. The share of rejected
tokens is the metric `policy/rejected_fraction`. All tensors have the shape [M], and M may be 0.
"""

import torch
from pydantic import Field
from torch import Tensor

from rl.batch.tensors import Predictions
from rl.corrections.common import Correction
from rl.corrections.config import CorrectionSettings


class Settings(CorrectionSettings):
    limit: float = Field(default=0.1, gt=0)
    """The largest mean |log-probability difference| of a sequence that is trained, in nats per token."""


def example(difference: Tensor, batch: Predictions, settings: Settings) -> Correction:
    """Keep the sequences within the limit, with the factor 1.

    `difference` is log policy - log behaviour policy, detached. `batch.rows` has the number of each token's sequence.
    """
    counts = torch.bincount(batch.rows)
    sums = difference.new_zeros(len(counts)).index_add(0, batch.rows, difference.abs())
    near = sums <= settings.limit * counts
    return Correction(torch.ones_like(difference), near[batch.rows])


example.Settings = Settings
