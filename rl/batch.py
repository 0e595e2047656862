"""Packing: rows of different lengths become micro-batches without padding, the same number on every rank.

Owns the layout of a micro-batch (`PackedBatch`) and how rows are spread over ranks and micro-batches. It needs no
torch, so the driver packs and the ranks only copy (`rl.loss.to_tensors`). It never truncates or drops a row.

Alignment: every array is aligned with the *predicting* position. Position t holds token t as input and, in `labels`,
`loss_mask`, `advantages`, `behaviour_logprobs` and `versions`, what belongs to token t+1 of the same segment. The last
position of a segment predicts nothing: label 0, mask 0, version OBSERVED. Nobody shifts these arrays again.
"""

from __future__ import annotations

import heapq
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


def pack(rows: Sequence[Row], ranks: int, token_budget: int) -> list[list[PackedBatch]]:
    """Spread rows over `ranks` lists of micro-batches of at most `token_budget` tokens.

    Every rank gets the same number of micro-batches (invariant 4), the smallest that our two heuristics can fill
    (`_assign`); token counts are balanced over micro-batches and over ranks, and micro-batches that run at the same
    time are close in size. Where there are fewer rows than places, and when there are no rows at all, fillers of
    zero weight take the rest. The result is deterministic.

    Raises:
        ValueError: ranks or token_budget below 1, an empty row, a row longer than the budget, or a row whose first
            token is to be trained (nothing predicts it).
    """
    if ranks < 1 or token_budget < 1:
        raise ValueError(f"ranks={ranks} and token_budget={token_budget} must both be at least 1")
    for index, row in enumerate(rows):
        _check(index, row, token_budget)
    bins = _assign([len(row) for row in rows], ranks, token_budget)
    batches: list[list[PackedBatch]] = [[] for _ in range(ranks)]
    for place, members in enumerate(bins):
        turn, column = divmod(place, ranks)
        # Bins come largest first: going back and forth over the ranks evens out their totals.
        rank = column if turn % 2 == 0 else ranks - 1 - column
        batches[rank].append(_concatenate([rows[i] for i in members]) if members else filler())
    return batches


def filler() -> PackedBatch:
    """A batch that costs nothing and trains nothing, for a rank that has no row left while another still has one."""
    return _concatenate([SftRow(token_ids=(0,) * FILLER_TOKENS, loss_mask=(0,) * FILLER_TOKENS)])


def denominator(batches: Sequence[Sequence[PackedBatch]]) -> int:
    """The trained tokens of one step over all ranks: the only number any loss of that step is divided by."""
    return sum(batch.trained_tokens for rank in batches for batch in rank)


def _check(index: int, row: Row, token_budget: int) -> None:
    if len(row) == 0:
        raise ValueError(f"row {index} has no tokens")
    if len(row) > token_budget:
        raise ValueError(
            f"row {index} has {len(row)} tokens, trainer.token_budget is {token_budget}: "
            f"raise trainer.token_budget to at least {len(row)} or lower rollout.max_context"
        )
    if _mask(row)[0]:
        raise ValueError(f"row {index}: its first token is to be trained, but nothing predicts it; mask it out")


def _assign(lengths: Sequence[int], ranks: int, budget: int) -> list[list[int]]:
    """Row indices per micro-batch, largest micro-batch first; as many bins as a multiple of `ranks`.

    Starts at the lower bound ceil(total / budget) and adds one micro-batch a rank until the rows fit.
    """
    per_rank = max(1, -(-sum(lengths) // (budget * ranks)))
    while True:
        count = per_rank * ranks
        bins = _longest_to_emptiest(lengths, count, budget) or _longest_to_fullest(lengths, count, budget)
        if bins is not None:
            return sorted(bins, key=lambda members: -sum(lengths[i] for i in members))
        per_rank += 1


def _longest_to_emptiest(lengths: Sequence[int], count: int, budget: int) -> list[list[int]] | None:
    """LPT: balanced (largest bin <= 4/3 of the best possible; Graham 1969). None if a bin passes the budget."""
    bins: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, b) for b in range(count)]
    for i in _longest_first(lengths):
        load, b = heapq.heappop(heap)
        if load + lengths[i] > budget:
            return None
        bins[b].append(i)
        heapq.heappush(heap, (load + lengths[i], b))
    return bins


def _longest_to_fullest(lengths: Sequence[int], count: int, budget: int) -> list[list[int]] | None:
    """Best-fit decreasing: tight instead of balanced, it fits some sets that LPT does not. None if it does not fit."""
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for i in _longest_first(lengths):
        open_bins = [b for b in range(count) if loads[b] + lengths[i] <= budget]
        if not open_bins:
            return None
        best = max(open_bins, key=loads.__getitem__)
        bins[best].append(i)
        loads[best] += lengths[i]
    return bins


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


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
