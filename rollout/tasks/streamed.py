"""Datasets that are read while they are used (`streaming: true`): forward only, a little ahead, by a thread.

The buffer asks for tasks in the order of the stream, and keeps those that are under way. So a stream never has to go
back. A resumed run reads it from the beginning up to its cursor, as fast as the rows come.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterable, Iterator
from itertools import count, islice

from rollout.contracts import EnvironmentSpec
from rollout.splits import EVAL_SHARE
from rollout.tasks.config import DatasetConfig, TaskSource
from rollout.tasks.dataset import RowTasks, every_task, place
from rollout.tasks.rows import Skipped
from rollout.types import Task

AHEAD = 256
"""Tasks that the thread reads ahead."""
FIRST = 100
"""Tasks by which a resumed run knows the dataset again."""
NEIGHBOURS = 1000
"""Tasks among which the next one is drawn."""
ROW_S = 120.0
"""How long the next row may take. A hub that does not answer makes `datasets` try again by itself for some time."""


class StreamedTasks:
    """The tasks of a streamed dataset that are not held out, pass after pass, each in another order."""

    distinct = float("inf")

    def __init__(self, source: TaskSource, dataset: DatasetConfig, spec: EnvironmentSpec, seed: int) -> None:
        self.skipped = Skipped(dataset.path)
        self._source, self._dataset, self._spec, self._seed = source, dataset, spec, seed
        self._next = 0
        self._queue: queue.Queue[Task | Exception] = queue.Queue(AHEAD)
        self._reader: threading.Thread | None = None

    def task(self, rank: int) -> Task:
        """Return a task that comes after all those returned before.

        Raises:
            ValueError: the dataset cannot be read on, or a bad row came; the message names it.
            TimeoutError: no row came for ROW_S seconds.
        """
        assert rank >= self._next, f"task {rank} of a stream that is at {self._next}"
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name=f"reads {self._dataset.path}", daemon=True)
            self._reader.start()
        while True:
            task = self._take()
            self._next += 1
            if self._next > rank:
                return task

    def first(self) -> list[Task]:
        """The first FIRST tasks, as the rows come, read once more."""
        return list(islice(self._trained(Skipped(self._dataset.path)), FIRST))

    def _take(self) -> Task:
        try:
            found = self._queue.get(timeout=ROW_S)
        except queue.Empty:
            raise TimeoutError(
                f"dataset {self._dataset.path}: no row came for {ROW_S:.0f} s; is its place reachable?"
            ) from None
        if isinstance(found, Exception):
            raise found
        return found

    def _read(self) -> None:
        try:
            for number in count():
                rng = random.Random(f"{self._dataset.path}/{self._seed}/{number}")
                skipped = self.skipped if number == 0 else Skipped(self._dataset.path)
                for task in neighbours_shuffled(self._trained(skipped), rng):
                    self._queue.put(task)
        except Exception as error:  # raised where the task is wanted
            self._queue.put(error)

    def _trained(self, skipped: Skipped) -> Iterator[Task]:
        found = False
        for task in every_task(self._source, self._dataset, self._spec, skipped):
            if self._source.sets_apart or place(task) >= EVAL_SHARE:
                found = True
                yield task
        if not found:
            raise ValueError(f"dataset {self._dataset.path}: it has no task that is not held out for evaluation")


def first_held_out(source: TaskSource, dataset: DatasetConfig, spec: EnvironmentSpec, size: int) -> RowTasks:
    """Return the first `size` held-out tasks of a streamed dataset, or as many as it has.

    Raises:
        ValueError: there is none, or what `from_rows` raises.
    """
    skipped = Skipped(dataset.path)
    tasks = every_task(source, dataset, spec, skipped)
    held_out = (task for task in tasks if source.sets_apart or place(task) < EVAL_SHARE)
    found = list(islice(held_out, size))
    if not found:
        raise ValueError(
            f"dataset {dataset.path}: none of its tasks falls to the evaluation; name rows for it in "
            "tasks.sources.N.eval_dataset or eval_split"
        )
    return RowTasks(found, skipped)


def neighbours_shuffled(tasks: Iterable[Task], rng: random.Random) -> Iterator[Task]:
    """The tasks in an order that is random among neighbours: each is drawn from NEIGHBOURS that wait."""
    waiting: list[Task] = []
    for task in tasks:
        if len(waiting) < NEIGHBOURS:
            waiting.append(task)
            continue
        drawn = rng.randrange(NEIGHBOURS)
        yield waiting[drawn]
        waiting[drawn] = task
    rng.shuffle(waiting)
    yield from waiting
