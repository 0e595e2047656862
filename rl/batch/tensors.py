"""A micro-batch on a device, and what a loss over it looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rl.batch.micro_batch import PackedBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchTensors:
    """`rl.batch.micro_batch.PackedBatch` on a device: same names, shapes, types and alignment."""

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    labels: Tensor
    loss_mask: Tensor
    advantages: Tensor
    behaviour_logprobs: Tensor
    versions: Tensor


def to_tensors(packed: PackedBatch, device: torch.device | str) -> BatchTensors:
    return BatchTensors(
        input_ids=torch.as_tensor(packed.input_ids, device=device),
        position_ids=torch.as_tensor(packed.position_ids, device=device),
        cu_seqlens=torch.as_tensor(packed.cu_seqlens, device=device),
        labels=torch.as_tensor(packed.labels, device=device),
        loss_mask=torch.as_tensor(packed.loss_mask, device=device),
        advantages=torch.as_tensor(packed.advantages, device=device),
        behaviour_logprobs=torch.as_tensor(packed.behaviour_logprobs, device=device),
        versions=torch.as_tensor(packed.versions, device=device),
    )


class Objective(Protocol):
    """What a micro-batch adds to the loss: a scalar already divided by `denominator`, and sums to report.

    The sums are detached scalars under the same names in every batch, fillers included; `train_step` adds them over
    micro-batches and ranks.
    """

    def __call__(
        self, logprobs: torch.Tensor, entropy: torch.Tensor, batch: BatchTensors, denominator: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...
