"""A micro-batch on a device, and the type of an objective: a function from log-probabilities to a loss per token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from rl.batch.micro_batch import PackedBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchTensors:
    """The arrays of a `PackedBatch` that lie along its tokens, on a device: same names, types and alignment."""

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    loss_mask: Tensor
    weights: Tensor
    advantages: Tensor
    behaviour_logprobs: Tensor
    versions: Tensor


def to_tensors(packed: PackedBatch, device: torch.device | str) -> BatchTensors:
    """Copy a micro-batch to `device`."""
    names = [field.name for field in fields(BatchTensors)]
    return BatchTensors(**{name: torch.as_tensor(getattr(packed, name), device=device) for name in names})


@dataclass(frozen=True, slots=True, eq=False)
class TokenLoss:
    """The result of a loss on a micro-batch. Values at positions with mask 0 are ignored."""

    loss: Tensor
    """[T], differentiable."""
    statistics: Mapping[str, Tensor]
    """[T] each, numbers or flags. The learner detaches and sums them. Every batch, fillers included, must have the same
    names."""


class Objective(Protocol):
    """Computes the loss of every token of a micro-batch. It knows no denominator and no other batch: the learner
    multiplies by the tokens' weights and sums over micro-batches and ranks.

    Args:
        logprobs: [T], differentiable, of the policy that is trained.
        entropy: [T], detached, of the same policy.
    """

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: BatchTensors) -> TokenLoss: ...
