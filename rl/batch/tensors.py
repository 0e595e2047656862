"""A micro-batch on a device, and what an objective is: a function from its log-probabilities to a loss a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from rl.batch.micro_batch import PackedBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchTensors:
    """`PackedBatch` on a device: same names, shapes, types and alignment."""

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
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
    """What a loss makes of a micro-batch. Values at positions with mask 0 count nowhere, whatever stands there."""

    loss: Tensor
    """[T], differentiable."""
    statistics: Mapping[str, Tensor]
    """[T] each, numbers or flags, detached by whoever adds them up; the same names in every batch, fillers included."""


class Objective(Protocol):
    """The loss of every token of a micro-batch. It knows no denominator and no other batch: the learner multiplies by
    the tokens' weights and adds up, over micro-batches and ranks.

    Args: logprobs [T], differentiable, and entropy [T], detached, of the policy that is trained.
    """

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: BatchTensors) -> TokenLoss: ...
