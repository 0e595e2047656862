"""A buffer on a real log and a real trajectory store, which a test may stop and go on with."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rollout.buffer.buffer import Buffer, BufferState
from rollout.buffer.resume import begin
from rollout.cards import Card, card_of
from rollout.store.eventlog import EventLog
from rollout.store.reading import FOLDER
from rollout.store.segments import Segment
from rollout.types import OBSERVED, Group, Task, Trajectory
from tests.samples import sample_of


def tasks(count: int) -> list[Task]:
    return [Task(id=f"t{i}", environment="e", messages=()) for i in range(count)]


def group(issue_id: str, task: Task, *versions: int, failed: bool = False) -> Group:
    """A group of two members. The first has one sampled token of each version, the second failed. In a failed group
    both failed."""
    sample = sample_of(
        token_ids=(1,) * (len(versions) + 1),
        loss_mask=(0,) + (1,) * len(versions),
        logprobs=(0.0,) * (len(versions) + 1),
        versions=(OBSERVED, *versions),
    )
    members = [
        Trajectory(
            task_id=task.id,
            group_id=issue_id,
            samples=() if broken else (sample,),
            messages=(),
            stop_reason="aborted" if broken else "answered",
            outcome="infra_error" if broken else "scored",
            reward=None if broken else 1.0,
            success=None if broken else True,
            error="the sandbox is gone" if broken else None,
        )
        for broken in (failed, True)
    ]
    return Group(id=issue_id, task=task, trajectories=tuple(members))


class Run:
    """A run's buffer in a directory. `resume` goes on like a new process: from a checkpoint, the log and the store."""

    def __init__(
        self, directory: Path, *, staleness: int = 0, step: int = 2, count: int = 100, limit: float = 1.0, seed: int = 0
    ) -> None:
        self.directory = directory
        self.folder = directory / FOLDER
        self.staleness = staleness
        self._step, self._limit, self._seed = step, limit, seed
        self._tasks = tasks(count)
        self.resume(None)

    def resume(self, saved: BufferState | None) -> None:
        self._segment: Segment | None = None
        self.log = EventLog(self.directory / "ledger.log", None if saved is None else saved.position)
        beginning = begin(self.log, saved, self.folder, max_staleness=self.staleness, seed=self._seed)
        self.told = beginning.told
        self.buffer = Buffer(
            self._tasks,
            beginning.ledger,
            beginning.cards,
            max_staleness=self.staleness,
            groups_per_step=self._step,
            failure_share_limit=self._limit,
            seed=self._seed,
        )

    def state(self) -> BufferState:
        """The buffer's state, after it went through a checkpoint's JSON."""
        version = self.buffer.version
        assert version is not None
        state = BufferState(
            ledger=self.buffer.ledger.state_dict(), position=self.log.position, version=version, time=time.time()
        )
        return BufferState(**json.loads(json.dumps(asdict(state))))

    def store(self, made: Group) -> Card:
        """Make a group durable, as its worker does before it hands the card over."""
        self._segment = self._segment or Segment(self.folder)
        return card_of(made, self._segment.append(made, "train"))

    def put(self, made: Group) -> None:
        self.buffer.put(self.store(made))

    def issue_all(self) -> list[tuple[str, Task]]:
        issued = []
        while (issue := self.buffer.issue()) is not None:
            issued.append(issue)
        return issued


def ids(cards: Sequence[Card] | None) -> list[str] | None:
    return None if cards is None else [card.id for card in cards]
