"""Tasks by position: a deterministic mixture of generated environments and datasets, in disjoint splits.

`task_stream` returns a sequence. Task i of a split is always the same, so the ledger needs only its index. Sources are
mixed by weight in a fixed pattern and not at random, so any stretch of the stream has nearly the recipe's proportions.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

from rollout.contracts import EnvironmentSpec
from rollout.envs.registry import make_environment
from rollout.tasks.config import TasksConfig, TaskSource
from rollout.tasks.dataset import checked_task, dataset_of, dataset_tasks
from rollout.tasks.rows import Skipped
from rollout.tasks.streamed import StreamedTasks, first_held_out
from rollout.types import Split, Task

PATTERN = 1000
"""Approximate number of positions after which the mixture repeats. Weights are rounded to thousandths of their sum."""
NO_END = sys.maxsize
"""The length of a stream that goes on for ever: there are no epochs where a dataset is read while it is used."""
EVAL_SEED = 0
"""The seed of the held-out tasks. It is fixed, so that runs with different seeds can be compared."""


def task_stream(config: TasksConfig, split: Split, seed: int) -> TaskStream:
    """Return the tasks of a split. `seed` decides what environments generate and the order of a dataset's rows.

    Raises:
        ValueError: an environment is unknown, or a dataset is bad. The message names row and field.
    """
    pattern = even_pattern([source.weight for source in config.sources])
    sources = [_source(source, seed, split, config.eval_size) for source in config.sources]
    if any(isinstance(source, StreamedTasks) for source in sources):
        return TaskStream(sources, pattern, NO_END)
    return TaskStream(sources, pattern, config.train_size if split == "train" else config.eval_size)


class TaskStream(Sequence[Task]):
    """`size` tasks. Environments generate theirs each time they are asked for."""

    def __init__(self, sources: Sequence[Tasks], pattern: Sequence[int], size: int) -> None:
        self._sources = sources
        self._pattern = pattern
        self._size = size
        self._rank = [pattern[:place].count(source) for place, source in enumerate(pattern)]

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if not 0 <= index < self._size:
            raise IndexError(f"task {index} of {self._size}")
        source, rank = self._place(index)
        return self._sources[source].task(rank)

    def once(self) -> list[Task]:
        """Return every task once, in order. Positions at which a dataset begins again are left out."""
        places = [self._place(index) for index in range(self._size)]
        return [self._sources[source].task(rank) for source, rank in places if rank < self._sources[source].distinct]

    @property
    def skipped(self) -> list[Skipped]:
        """What has been left out of each dataset so far, where something was."""
        return [source.skipped for source in self._sources if source.skipped is not None and source.skipped.rows]

    @cached_property
    def digest(self) -> str:
        """16 hex digits over what a position means: over the tasks of all datasets, of a streamed one the first."""
        digest = hashlib.sha256()
        for source in self._sources:
            for task in () if isinstance(source, _Generated) else source.first():
                digest.update(json.dumps([task.id, task.messages, task.payload, task.metadata]).encode())
        return digest.hexdigest()[:16]

    def _place(self, index: int) -> tuple[int, int]:
        """Return the index of a position's source, and the number of that source's tasks before the position."""
        period, place = divmod(index, len(self._pattern))
        source = self._pattern[place]
        return source, period * self._pattern.count(source) + self._rank[place]


@dataclass(frozen=True, slots=True)
class _Generated:
    spec: EnvironmentSpec
    label: str
    seed: int
    split: Split

    @property
    def distinct(self) -> float:
        return math.inf

    @property
    def skipped(self) -> None:
        """It has no rows."""

    def task(self, rank: int) -> Task:
        return checked_task(replace(self.spec.generate(rank, self.seed, self.split), source=self.label))


@dataclass(frozen=True, slots=True)
class _Rows:
    tasks: Sequence[Task]
    skipped: Skipped

    def first(self) -> Sequence[Task]:
        """The tasks that the digest is about."""
        return self.tasks

    @property
    def distinct(self) -> float:
        """The number of tasks after which they come again."""
        return len(self.tasks)

    def task(self, rank: int) -> Task:
        return self.tasks[rank % len(self.tasks)]


Tasks = _Generated | _Rows | StreamedTasks


def _source(source: TaskSource, seed: int, split: Split, eval_size: int) -> Tasks:
    spec = make_environment(source.environment)
    dataset = dataset_of(source, split)
    if dataset is None:
        return _Generated(spec, source.label, seed, split)
    if dataset.streaming and split == "train":
        return StreamedTasks(source, dataset, spec, seed)
    if dataset.streaming:
        found = first_held_out(source, dataset, spec, eval_size)
    else:
        found = dataset_tasks(source, spec, split)
    random.Random(f"{dataset.path}/{seed}").shuffle(found.tasks)
    return _Rows(found.tasks, found.skipped)


def even_pattern(weights: Sequence[float]) -> list[int]:
    """Return the index of the source for each place.

    Each source's places are spread as evenly as its share allows, so sources of equal weights alternate.
    """
    total = sum(weights)
    counts = [max(1, round(PATTERN * weight / total)) for weight in weights]
    places = [((k + 0.5) / count, source) for source, count in enumerate(counts) for k in range(count)]
    return [source for _, source in sorted(places)]
