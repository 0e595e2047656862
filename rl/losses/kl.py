"""The distance of the policy from the reference policy: estimators of one token's KL divergence.

The estimators are functions of x = log reference - log policy at a sampled token (Schulman 2020,
joschu.net/blog/kl-approx.html). All but k2 have KL(policy || reference) as their expectation where the policy itself
sampled the token; their gradients differ, which matters where they stand in the loss:

    name       value            expected gradient
    k1         -x               0: of no use in the loss, right in the reward
    k2         x² / 2           that of KL(policy || reference), where this policy sampled the token
    k3         e^x - 1 - x      that of KL(reference || policy)
    unbiased   r (e^x - 1 - x)  that of KL(policy || reference), whichever policy sampled the token

r = policy / behaviour policy has a gradient of its own in `unbiased` (DeepSeek-V3.2, arXiv:2512.02556). With a detached
r the gradient would be k3's. x and log r are clamped to ±LOG_RATIO_LIMIT.
"""

from __future__ import annotations

from torch import Tensor

from rl.batch.tensors import Predictions
from rl.losses.common import LOG_RATIO_LIMIT, log_ratio
from rl.losses.config import Estimator


def divergence(logprobs: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """The estimate [M] in nats at tokens with these logprobs [M] under the policy and the reference policy.

    `unbiased` is the same as k3 here: its factor is 1 where the policy itself sampled the tokens.
    """
    x = (reference - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k1":
        return -x
    if estimator == "k2":
        return x.square() / 2
    return x.expm1() - x


def kl_loss(logprobs: Tensor, batch: Predictions, estimator: Estimator) -> Tensor:
    """The term [M] of the loss, differentiable in logprobs."""
    assert batch.reference_logprobs is not None, "the reference's logprobs are computed before the step"
    found = divergence(logprobs, batch.reference_logprobs, estimator)
    return found * log_ratio(logprobs, batch).exp() if estimator == "unbiased" else found
