"""Loss: a policy gradient whose importance ratio is cut off above a limit and has no gradient of its own.

A loss is a function from log-probabilities to one number for each trained token, and statistics, whose means over the
trained tokens become the metrics `loss/<name>`. It knows no denominator and no other micro-batch: the learner
multiplies by the tokens' weights and adds up. All tensors have the shape [M], one entry for each trained token, and M
may be 0. `batch` (rl/batch/tensors.py) has the advantages, the log-probabilities and policy versions that the tokens
were sampled with, and in `rows` which tokens belong to one sequence.
"""

from pydantic import Field
from torch import Tensor

from rl.batch.tensors import Predictions, TokenLoss
from rl.losses.common import log_ratio
from rl.losses.config import LossSettings


class Settings(LossSettings):
    limit: float = Field(default=2.0, gt=0)
    """The largest importance ratio that a token's loss is multiplied by."""


def example(logprobs: Tensor, entropy: Tensor, batch: Predictions, settings: Settings) -> TokenLoss:
    """Return -min(r, limit) A log p for every token, with the constant r = policy / behaviour policy (truncated
    importance sampling; Espeholt et al. 2018, IMPALA).

    `logprobs` are differentiable, `entropy` is not. Every micro-batch must have the same statistics.
    """
    ratio = log_ratio(logprobs, batch).exp().detach()
    loss = -ratio.clamp(max=settings.limit) * batch.advantages * logprobs
    return TokenLoss(loss, {"truncated": ratio > settings.limit})


example.Settings = Settings
