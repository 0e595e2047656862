"""Tasks by position: a deterministic mixture of generated environments and datasets, in disjoint splits.

`task_stream` returns a sequence. Task i of a split is always the same, so the ledger needs only its index. Sources are
mixed by weight in a fixed pattern and not at random, so any stretch of the stream has nearly the recipe's proportions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

from rollout.contracts import EnvironmentSpec
from rollout.envs.registry import make_environment
from rollout.tasks.config import TasksConfig, TaskSource
from rollout.tasks.dataset import checked_task, dataset_tasks
from rollout.types import Split, Task

PATTERN = 1000
"""Approximate number of positions after which the mixture repeats. Weights are rounded to thousandths of their sum."""
EVAL_SEED = 0
"""The seed of the held-out tasks. It is fixed, so that runs with different seeds can be compared."""


def task_stream(config: TasksConfig, split: Split, seed: int) -> TaskStream:
    """Return the tasks of a split. `seed` decides what environments generate and the order of a dataset's rows.

    Raises:
        ValueError: an environment is unknown, or a dataset is bad. The message names row and field.
    """
    size = config.train_size if split == "train" else config.eval_size
    return TaskStream([_source(s, seed, split) for s in config.sources], _pattern(config.sources), size)


class TaskStream(Sequence[Task]):
    """`size` tasks. Environments generate theirs each time they are asked for."""

    def __init__(self, sources: Sequence[_Generated | _Rows], pattern: Sequence[int], size: int) -> None:
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

    def task(self, rank: int) -> Task:
        return checked_task(replace(self.spec.generate(rank, self.seed, self.split), source=self.label))


@dataclass(frozen=True, slots=True)
class _Rows:
    tasks: Sequence[Task]

    @property
    def distinct(self) -> float:
        """The number of tasks after which they come again."""
        return len(self.tasks)

    def task(self, rank: int) -> Task:
        return self.tasks[rank % len(self.tasks)]


def _source(source: TaskSource, seed: int, split: Split) -> _Generated | _Rows:
    spec = make_environment(source.environment)
    if source.dataset is None:
        return _Generated(spec, source.label, seed, split)
    chosen = dataset_tasks(source, spec, split)
    random.Random(f"{source.dataset}/{seed}").shuffle(chosen)
    return _Rows(chosen)


def _pattern(sources: Sequence[TaskSource]) -> list[int]:
    """Return the index of the source for each place.

    Each source's places are spread as evenly as its share allows, so sources of equal weights alternate.
    """
    total = sum(source.weight for source in sources)
    counts = [max(1, round(PATTERN * source.weight / total)) for source in sources]
    places = [((k + 0.5) / count, source) for source, count in enumerate(counts) for k in range(count)]
    return [source for _, source in sorted(places)]
