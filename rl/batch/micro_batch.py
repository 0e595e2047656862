"""Packing: rows of different lengths become micro-batches without padding, the same number on every rank.

Owns the layout of a micro-batch (`PackedBatch`) and how rows are spread over ranks and micro-batches. It needs no
torch, so the driver packs and the ranks only copy (`rl.batch.tensors.to_tensors`). It never truncates or drops a row.

Alignment: every array is aligned with the *predicting* position. Position t holds token t as input and, in `labels`,
`loss_mask`, `advantages`, `behaviour_logprobs` and `versions`, what belongs to token t+1 of the same segment. The last
position of a segment predicts nothing: label 0, mask 0, version OBSERVED. Nobody shifts these arrays again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rollout.types import OBSERVED, Sample

FILLER_TOKENS = 2
"""A segment of one token takes the decoding path of some attention kernels; two take the ordinary one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRow:
    """One sampled token stream and the advantage that each of its sampled tokens gets."""

    sample: Sample
    advantage: float

    def __len__(self) -> int:
        return len(self.sample.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SftRow:
    """One demonstration: `loss_mask` is 1 on the tokens to imitate. No policy sampled it, so it has no version."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.loss_mask):
            raise ValueError(f"{len(self.token_ids)} token_ids but {len(self.loss_mask)} loss_mask entries")

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
    advantages: npt.NDArray[np.float32]
    """[T], 0 where the mask is 0, and everywhere in a supervised batch."""
    behaviour_logprobs: npt.NDArray[np.float32]
    """[T], natural log under the distribution labels[t] was sampled from; 0 where the mask is 0."""
    versions: npt.NDArray[np.int32]
    """[T], the policy version that sampled labels[t]; OBSERVED (-1) where none did."""

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        return int(self.loss_mask.sum(dtype=np.int64))


def filler() -> PackedBatch:
    """A batch that costs nothing and trains nothing, for a rank that has no row left while another still has one."""
    return _concatenate([SftRow(token_ids=(0,) * FILLER_TOKENS, loss_mask=(0,) * FILLER_TOKENS)])


def denominator(batches: Sequence[Sequence[PackedBatch]]) -> int:
    """The trained tokens of one step over all ranks: the only number any loss of that step is divided by."""
    return sum(batch.trained_tokens for rank in batches for batch in rank)


def _mask(row: Row) -> tuple[int, ...]:
    return row.sample.loss_mask if isinstance(row, TrainRow) else row.loss_mask


def _concatenate(rows: Sequence[Row]) -> PackedBatch:
    cu_seqlens = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    total = int(cu_seqlens[-1])
    batch = PackedBatch(
        input_ids=np.zeros(total, np.int64),
        position_ids=np.zeros(total, np.int64),
        cu_seqlens=cu_seqlens,
        labels=np.zeros(total, np.int64),
        loss_mask=np.zeros(total, np.float32),
        advantages=np.zeros(total, np.float32),
        behaviour_logprobs=np.zeros(total, np.float32),
        versions=np.full(total, OBSERVED, np.int32),
    )
    for row, (start, end) in zip(rows, pairwise(cu_seqlens.tolist()), strict=True):
        _write(batch, row, start, end)
    return batch


def _write(batch: PackedBatch, row: Row, start: int, end: int) -> None:
    """Write one row into its segment; what belongs to token t+1 goes to position t."""
    predicting = slice(start, end - 1)
    tokens = row.sample.token_ids if isinstance(row, TrainRow) else row.token_ids
    batch.input_ids[start:end] = tokens
    batch.position_ids[start:end] = np.arange(end - start)
    batch.labels[predicting] = tokens[1:]
    batch.loss_mask[predicting] = _mask(row)[1:]
    if isinstance(row, TrainRow):
        batch.advantages[predicting] = row.advantage * batch.loss_mask[predicting]
        batch.behaviour_logprobs[predicting] = row.sample.logprobs[1:]
        batch.versions[predicting] = row.sample.versions[1:]
