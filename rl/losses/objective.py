"""Build a stage's objective: its loss and its correction, with their settings, as one function of a micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.extension import load
from rl.batch.tensors import Objective, Predictions, TokenLoss
from rl.corrections.registry import CORRECTIONS
from rl.losses.config import ObjectiveSpec
from rl.losses.registry import LOSSES


def make_objective(spec: ObjectiveSpec, version: int) -> Objective:
    """The objective of a step that trains policy version `version`.

    In addition to the loss's own statistics it reports `tokens`, `entropy` and `rejected` (left out by the correction).
    Two more are about *fresh* tokens, which this same version sampled: `fresh_tokens`, and their `mismatch`
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
        weighted = (found.loss * corrected.weight).where(corrected.keep, 0.0)
        return TokenLoss(weighted, {**found.statistics, **common})

    return objective
