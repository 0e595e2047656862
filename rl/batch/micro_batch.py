"""The rows that are trained, and the layout of a micro-batch: rows as prefix trees, without padding.

Nothing here needs torch. `rl.batch.packing` decides which rows share a micro-batch, `rl.batch.tensors` copies one to a
device.

A micro-batch has `tokens` [T], each row's tokens along a path of `segments` (`rl.batch.tree`), and *predictions* [M]:
one for each trained token of each row. Prediction m is made at position `sources[m]`, where the token before it in its
row lies, and of the token `labels[m]`. One position of a shared prefix may predict several tokens, each for a row of
its own, and positions that nobody trains make none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rl.batch.tree import Forest, Segment, plant
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
    temperatures: float | npt.NDArray[np.float64] = 1.0
    """The temperature that the trained tokens were sampled at: of all of them, or one for each in order."""

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
class MicroBatch:
    """One micro-batch; see the module's docstring."""

    segments: tuple[Segment, ...]
    tokens: npt.NDArray[np.int64]
    """[T]"""
    position_ids: npt.NDArray[np.int64]
    """[T], a token's place in its rows, from 0."""
    multiplicity: npt.NDArray[np.int64]
    """[T], the number of rows that have the token; 0 in a filler."""
    sources: npt.NDArray[np.int64]
    """[M], the position that predicts."""
    labels: npt.NDArray[np.int64]
    """[M], the token that is trained: the policy sampled it, or it is to be imitated."""
    rows: npt.NDArray[np.int64]
    """[M], the number of the row in the micro-batch, from 0. A row's predictions stand together, in order."""
    advantages: npt.NDArray[np.float32]
    """[M], 0 in a supervised micro-batch."""
    weights: npt.NDArray[np.float32]
    """[M], the factor of the prediction's loss."""
    behaviour_logprobs: npt.NDArray[np.float32]
    """[M], natural log under the distribution that the label was sampled from; 0 in a supervised micro-batch."""
    versions: npt.NDArray[np.int32]
    """[M], the policy version that sampled the label; OBSERVED (-1) where no policy did."""
    temperatures: npt.NDArray[np.float32]
    """[M], the temperature that the label was sampled at; 1 in a supervised micro-batch."""
    reference_logprobs: npt.NDArray[np.float32] | None = None
    """[M], of the label under the reference policy; None where nobody needs it."""

    def __len__(self) -> int:
        return len(self.tokens)


def filler() -> MicroBatch:
    """A tiny micro-batch that trains nothing, for a rank that has no row left while another rank still has one."""
    return lay_out([])


def mask_of(row: Row) -> npt.NDArray[np.uint8]:
    """The loss mask of a row: 1 on the tokens that are trained, else 0."""
    return row.sample.loss_mask if isinstance(row, TrainRow) else np.asarray(row.loss_mask, np.uint8)


def tokens_of(row: Row) -> npt.NDArray[np.int32]:
    return row.sample.token_ids if isinstance(row, TrainRow) else np.asarray(row.token_ids, np.int32)


def lay_out(rows: Sequence[Row], shared: Sequence[int] | None = None) -> MicroBatch:
    """Lay rows out in one micro-batch; without rows it is a filler.

    Args:
        shared: for each row the number of tokens that it has in common with the row before it, from the beginning on,
            and that both then use; None: none.

    Raises:
        ValueError: rows do not have the tokens in common that `shared` says, or the first token of a row is to be
            trained, but nothing predicts it.
    """
    forest = plant([len(row) for row in rows], [0] * len(rows) if shared is None else shared)
    length = forest.tokens or FILLER_TOKENS
    tokens, position_ids, multiplicity = (np.zeros(length, np.int64) for _ in range(3))
    predictions = _Predictions()
    for number, (row, place) in enumerate(zip(rows, forest.places, strict=True)):
        known = multiplicity[place] > 0
        ids = tokens_of(row)
        if not np.array_equal(tokens[place[known]], ids[known]):
            raise ValueError(f"row {number} does not begin with the {known.sum()} tokens that it is said to share")
        tokens[place] = ids
        position_ids[place] = np.arange(len(row))
        multiplicity[place] += 1
        predictions.add(number, row, place)
    if not rows:
        position_ids[:] = np.arange(length)
    return MicroBatch(
        segments=_segments(forest, length),
        tokens=tokens,
        position_ids=position_ids,
        multiplicity=multiplicity,
        **predictions.arrays(),
    )


def _segments(forest: Forest, length: int) -> tuple[Segment, ...]:
    return forest.segments or (Segment(0, length, -1),)


_DTYPES = {
    "sources": np.int64,
    "labels": np.int64,
    "rows": np.int64,
    "advantages": np.float32,
    "weights": np.float32,
    "behaviour_logprobs": np.float32,
    "versions": np.int32,
    "temperatures": np.float32,
}


@dataclass(slots=True)
class _Predictions:
    """The predictions of rows, collected row by row."""

    parts: dict[str, list[npt.ArrayLike]] = field(default_factory=lambda: {name: [] for name in _DTYPES})

    def add(self, number: int, row: Row, place: npt.NDArray[np.int64]) -> None:
        trained = np.flatnonzero(mask_of(row))
        if trained.size and trained[0] == 0:
            raise ValueError("the first token of a row is to be trained, but nothing predicts it; mask it out")
        count = len(trained)
        values: dict[str, npt.ArrayLike] = {
            "sources": place[trained - 1],
            "labels": tokens_of(row)[trained],
            "rows": np.full(count, number),
            "weights": np.full(count, row.weight),
        }
        if isinstance(row, TrainRow):
            values |= {
                "advantages": row.advantages,
                "behaviour_logprobs": row.sample.logprobs[trained],
                "versions": row.sample.versions[trained],
                "temperatures": np.broadcast_to(row.temperatures, count),
            }
        else:
            values |= {
                "advantages": np.zeros(count),
                "behaviour_logprobs": np.zeros(count),
                "versions": np.full(count, OBSERVED),
                "temperatures": np.ones(count),
            }
        for name, value in values.items():
            self.parts[name].append(value)

    def arrays(self) -> dict[str, Any]:
        return {
            name: np.concatenate([np.zeros(0, dtype), *self.parts[name]]).astype(dtype)
            for name, dtype in _DTYPES.items()
        }
