"""A micro-batch on a device, and the type of an objective: from log-probabilities to the loss of every prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from rl.batch.micro_batch import MicroBatch
from rl.batch.tree import Segment


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelInputs:
    """What the model computes: the arrays of a `MicroBatch` of the same names, on a device."""

    segments: tuple[Segment, ...]
    tokens: Tensor
    position_ids: Tensor
    multiplicity: Tensor
    sources: Tensor
    labels: Tensor
    temperatures: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """All that losses and corrections see of a `MicroBatch`: its arrays [M] of the same names, on a device.

    `rows` tells the predictions of a row, for quantities of a whole sequence; a row's stand together, in order.
    """

    rows: Tensor
    advantages: Tensor
    weights: Tensor
    behaviour_logprobs: Tensor
    versions: Tensor
    reference_logprobs: Tensor | None = None


def model_inputs(batch: MicroBatch, device: torch.device | str) -> ModelInputs:
    """Copy what the model needs of a micro-batch to `device`."""
    names = [field.name for field in fields(ModelInputs) if field.name != "segments"]
    return ModelInputs(segments=batch.segments, **_copied(batch, names, device))


def predictions_of(batch: MicroBatch, device: torch.device | str) -> Predictions:
    """Copy what an objective needs of a micro-batch to `device`."""
    names = [field.name for field in fields(Predictions) if getattr(batch, field.name) is not None]
    return Predictions(**_copied(batch, names, device))


def _copied(batch: MicroBatch, names: list[str], device: torch.device | str) -> dict[str, Tensor]:
    return {name: torch.tensor(getattr(batch, name), device=device) for name in names}


@dataclass(frozen=True, slots=True, eq=False)
class TokenLoss:
    """The result of a loss on the predictions of a micro-batch."""

    loss: Tensor
    """[M], differentiable."""
    statistics: Mapping[str, Tensor]
    """[M] each, numbers or flags. The learner detaches and sums them. Every micro-batch, fillers included, must have
    the same names."""


class Objective(Protocol):
    """Computes the loss of every prediction of a micro-batch. It knows no denominator and no other micro-batch: the
    learner multiplies by the predictions' weights and sums over micro-batches and ranks.

    Args:
        logprobs: [M], differentiable, of the policy that is trained.
        entropy: [M], detached, of the same policy.
        batch: M may be 0.
    """

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: Predictions) -> TokenLoss: ...
