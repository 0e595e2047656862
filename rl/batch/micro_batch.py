"""The rows that are trained, and the layout of a micro-batch: rows of any lengths laid end to end, without padding.

Nothing here needs torch. `rl.batch.packing` decides which rows share a micro-batch, `rl.batch.tensors` copies one to a
device.

Alignment: every array is aligned with the *predicting* position. At position t, `input_ids` holds token t; `labels`,
`loss_mask`, `weights`, `advantages`, `behaviour_logprobs` and `versions` hold the values of token t+1 of the same
segment. The last position of a segment predicts nothing: label 0, mask 0, version OBSERVED. Do not shift these arrays
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rollout.types import OBSERVED, Sample

FILLER_TOKENS = 2
"""The length of a filler. One token would send some attention kernels down their decoding path; two do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRow:
    """One sampled token stream, with the advantages and the weight of its trained tokens."""

    sample: Sample
    advantages: npt.NDArray[np.float64]
    """One for each trained token of the sample, in order."""
    weight: float
    """The weight of every trained token in the step's loss. It implements the aggregation (rl.advantages.rows)."""

    def __post_init__(self) -> None:
        if len(self.advantages) != self.sample.trained_tokens:
            raise ValueError(f"{len(self.advantages)} advantages for {self.sample.trained_tokens} trained tokens")

    def __len__(self) -> int:
        return len(self.sample.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SftRow:
    """One demonstration: `loss_mask` is 1 on the tokens to imitate. No policy sampled it, so it has no version."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    weight: float = 1.0
    """The weight of every token to imitate in the step's loss."""

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.loss_mask):
            raise ValueError(f"{len(self.token_ids)} token_ids but {len(self.loss_mask)} loss_mask entries")

    @property
    def trained_tokens(self) -> int:
        return sum(self.loss_mask)

    def __len__(self) -> int:
        return len(self.token_ids)


Row = TrainRow | SftRow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """One micro-batch: n segments laid end to end, T tokens in all. For the alignment see the module's docstring."""

    input_ids: npt.NDArray[np.int64]
    """[T]"""
    position_ids: npt.NDArray[np.int64]
    """[T], restarts at 0 in every segment."""
    cu_seqlens: npt.NDArray[np.int32]
    """[n + 1], the segments' boundaries: segment i is cu_seqlens[i]:cu_seqlens[i + 1]."""
    labels: npt.NDArray[np.int64]
    """[T], the next token of the same segment; 0 at a segment's last position."""
    loss_mask: npt.NDArray[np.float32]
    """[T], 1 where labels[t] is trained (the policy sampled it, or it is to be imitated), else 0."""
    weights: npt.NDArray[np.float32]
    """[T], the factor of labels[t]'s loss; 0 where the mask is 0."""
    advantages: npt.NDArray[np.float32]
    """[T], 0 where the mask is 0, and everywhere in a supervised batch."""
    behaviour_logprobs: npt.NDArray[np.float32]
    """[T], natural log under the distribution labels[t] was sampled from; 0 where the mask is 0."""
    versions: npt.NDArray[np.int32]
    """[T], the policy version that sampled labels[t]; OBSERVED (-1) where no policy did."""

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


def filler() -> PackedBatch:
    """A tiny batch that trains nothing, for a rank that has no row left while another rank still has one."""
    return concatenate([SftRow(token_ids=(0,) * FILLER_TOKENS, loss_mask=(0,) * FILLER_TOKENS)])


def mask_of(row: Row) -> npt.NDArray[np.uint8]:
    """The loss mask of a row: 1 on the tokens that are trained, else 0."""
    return row.sample.loss_mask if isinstance(row, TrainRow) else np.asarray(row.loss_mask, np.uint8)


def concatenate(rows: Sequence[Row]) -> PackedBatch:
    """Lay rows end to end, one segment each.

    Raises:
        ValueError: the first token of a row is to be trained, but nothing predicts it.
    """
    cu_seqlens = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    total = int(cu_seqlens[-1])
    batch = PackedBatch(
        input_ids=np.zeros(total, np.int64),
        position_ids=np.zeros(total, np.int64),
        cu_seqlens=cu_seqlens,
        labels=np.zeros(total, np.int64),
        loss_mask=np.zeros(total, np.float32),
        weights=np.zeros(total, np.float32),
        advantages=np.zeros(total, np.float32),
        behaviour_logprobs=np.zeros(total, np.float32),
        versions=np.full(total, OBSERVED, np.int32),
    )
    for row, (start, end) in zip(rows, pairwise(cu_seqlens.tolist()), strict=True):
        _write(batch, row, start, end)
    return batch


def _write(batch: PackedBatch, row: Row, start: int, end: int) -> None:
    """Write one row into its segment. The values of token t+1 go to position t."""
    if mask_of(row)[0]:
        raise ValueError("the first token of a row is to be trained, but nothing predicts it; mask it out")
    predicting = slice(start, end - 1)
    tokens = np.asarray(row.sample.token_ids if isinstance(row, TrainRow) else row.token_ids)
    batch.input_ids[start:end] = tokens
    batch.position_ids[start:end] = np.arange(end - start)
    batch.labels[predicting] = tokens[1:]
    batch.loss_mask[predicting] = mask_of(row)[1:]
    batch.weights[predicting] = row.weight * batch.loss_mask[predicting]
    if isinstance(row, TrainRow):
        batch.advantages[predicting][batch.loss_mask[predicting] > 0] = row.advantages
        batch.behaviour_logprobs[predicting] = row.sample.logprobs[1:]
        batch.versions[predicting] = row.sample.versions[1:]
