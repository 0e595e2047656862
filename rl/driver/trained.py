"""A rank's record of what it trains: for people who look at a run's tokens (rollout.store.trained)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from rl.batch.micro_batch import MicroBatch
from rl.batch.plan import PlannedBatch, RankPlan
from rollout.store.config import TrajectoriesConfig
from rollout.store.shared import RunFolder
from rollout.store.trained import FOLDER, TrainedLog, TrainedSample

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


class TrainedRecord:
    """Collects what the learner trains in a step (`seen`), and writes it after the step."""

    def __init__(self, folder: RunFolder, config: TrajectoriesConfig) -> None:
        self._log = TrainedLog(folder.trajectories.with_name(FOLDER), config.segment_mb * 1e6)
        self._on = config.trained_tokens
        self._seen: list[tuple[MicroBatch, Tensor]] = []

    def seen(self, batch: MicroBatch, logprobs: Tensor) -> None:
        """A micro-batch of the step with the log-probabilities [M] that its loss was computed from."""
        if self._on:
            self._seen.append((batch, logprobs))

    def write(self, part: RankPlan, step: int) -> None:
        """Write what was seen, which is the plan's micro-batches in order. The run goes on without the record if it
        cannot be written."""
        seen, self._seen = self._seen, []
        samples = [
            sample
            for planned, (batch, logprobs) in zip(part.micro_batches, seen, strict=self._on)
            for sample in _samples(part, planned, batch, logprobs, step)
        ]
        if not samples:
            return
        try:
            self._log.append(samples)
        except OSError as error:
            log.warning("trained tokens are no longer recorded: %s", error)
            self._on = False

    def close(self) -> None:
        self._log.close()


def _samples(
    part: RankPlan, planned: PlannedBatch, batch: MicroBatch, logprobs: Tensor, step: int
) -> Iterator[TrainedSample]:
    values = logprobs.float().cpu().numpy()
    starts = np.searchsorted(batch.rows, np.arange(len(planned.rows) + 1))
    for row, start, stop in zip(planned.rows, starts[:-1], starts[1:], strict=True):
        yield TrainedSample(
            step=step,
            address=part.groups[row.group].address,
            sample=row.sample,
            advantages=batch.advantages[start:stop],
            logprobs=values[start:stop],
        )
