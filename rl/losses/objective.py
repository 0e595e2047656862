"""Build a stage's objective: its loss and its correction, with their settings, as one function of a micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.extension import load
from rl.batch.tensors import Objective, Predictions, TokenLoss
from rl.corrections.registry import CORRECTIONS
from rl.losses.config import ObjectiveSpec
from rl.losses.kl import divergence, kl_loss
from rl.losses.registry import LOSSES

RESERVED = {"loss", "grad_norm", "lr", "policy"}
"""Names that other numbers of a step have."""


def make_objective(spec: ObjectiveSpec, version: int) -> Objective:
    """The objective of a step that trains policy version `version`.

    In addition to the loss's own statistics it reports `tokens`, `entropy` and `rejected` (left out by the correction).
    With a reference policy it reports `kl_reference`, the k3 estimate of the divergence from it. Two more are about
    *fresh* tokens, which this same version sampled: `fresh_tokens`, and their `mismatch`
    |logprob - behaviour logprob|. On fresh tokens engine and trainer must agree.
    """
    loss = load(LOSSES, spec.loss.name)
    correction = load(CORRECTIONS, spec.correction.name)

    def objective(logprobs: Tensor, entropy: Tensor, batch: Predictions) -> TokenLoss:
        found: TokenLoss = loss(logprobs, entropy, batch, spec.loss)
        difference = logprobs.detach() - batch.behaviour_logprobs
        corrected = correction(difference, batch, spec.correction)
        fresh = batch.versions == version
        common = {
            "tokens": torch.ones_like(batch.weights),
            "entropy": entropy,
            "rejected": ~corrected.keep,
            "fresh_tokens": fresh,
            "mismatch": difference.abs().where(fresh, 0.0),
        }
        if spec.kl is not None:
            assert batch.reference_logprobs is not None, "they are computed before the step"
            common["kl_reference"] = divergence(logprobs.detach(), batch.reference_logprobs, "k3")
        if taken := sorted(found.statistics.keys() & {*common, *RESERVED}):
            raise ValueError(f"the loss {spec.loss.name} names a statistic {', '.join(taken)}: that name is taken")
        weighted = found.loss * corrected.weight
        if spec.kl is not None and spec.kl.place == "loss":
            weighted = weighted + spec.kl.coef * kl_loss(logprobs, batch, spec.kl.estimator)
        return TokenLoss(weighted.where(corrected.keep, 0.0), {**found.statistics, **common})

    return objective


def check_objective(objective: Objective) -> None:
    """Call an objective on two predictions and on none, as a rank without rows does.

    Raises:
        ValueError: it cannot do without predictions, or then reports other statistics. Ranks would wait for each other.
    """
    some, none = ({*objective(torch.zeros(n), torch.zeros(n), _predictions(n)).statistics} for n in (2, 0))
    if some != none:
        raise ValueError(f"a loss must report the same statistics without any prediction: {sorted(some ^ none)}")


def _predictions(count: int) -> Predictions:
    zeros = torch.zeros(count)
    return Predictions(
        rows=zeros.long(),
        advantages=zeros,
        weights=zeros,
        behaviour_logprobs=zeros,
        versions=zeros.int(),
        reference_logprobs=zeros,
    )
