"""What a step needs of the reference policy before it begins: its logprobs, and a KL penalty in the advantages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from rl.batch.micro_batch import MicroBatch
from rl.losses.config import KlConfig
from rl.losses.kl import divergence

Sums = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Adds up named numbers over all ranks."""


def with_reference(batch: MicroBatch, logprobs: npt.NDArray[np.float32]) -> MicroBatch:
    """The micro-batch with the reference policy's logprobs [M]."""
    return replace(batch, reference_logprobs=logprobs)


def penalised(batches: Sequence[MicroBatch], kl: KlConfig, sums: Sums) -> list[MicroBatch]:
    """A rank's micro-batches with the divergence taken off their advantages: A - coef * (K - mean of K).

    K is a token's divergence by the logprobs that it was sampled with or, unless `credit` is token, the sum of it and
    of those that follow in its sample. The mean is over the trained tokens of all ranks. It is a baseline: without it,
    every token of a policy that has moved would be pushed down. A collective.
    """
    penalties = [_penalties(batch, kl) for batch in batches]
    total = sums({"penalty": sum(float(p.sum()) for p in penalties), "tokens": float(sum(map(len, penalties)))})
    mean = total["penalty"] / max(total["tokens"], 1.0)
    return [_taken_off(batch, kl.coef * (p - mean)) for batch, p in zip(batches, penalties, strict=True)]


def _penalties(batch: MicroBatch, kl: KlConfig) -> npt.NDArray[np.float64]:
    assert batch.reference_logprobs is not None, "the reference comes first"
    sampled, reference = (torch.from_numpy(a).double() for a in (batch.behaviour_logprobs, batch.reference_logprobs))
    found = divergence(sampled, reference, kl.estimator).numpy()
    return found if kl.credit == "token" else _to_go(found, batch.rows)


def _to_go(values: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The sum of each value and of those after it in its row. A row's values stand together."""
    if not len(values):
        return values
    to_the_end = values[::-1].cumsum()[::-1]
    last = np.flatnonzero(np.append(rows[1:] != rows[:-1], True))
    after = np.append(to_the_end[1:], 0.0)[last]
    return to_the_end - after[np.searchsorted(last, np.arange(len(values)))]


def _taken_off(batch: MicroBatch, penalty: npt.NDArray[np.float64]) -> MicroBatch:
    return replace(batch, advantages=(batch.advantages - penalty).astype(np.float32))
