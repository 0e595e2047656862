"""The Ray shell around the buffer. The rules are in `rollout.buffer.buffer`; here callers wait for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rollout.actors.process import enter_role, relax_gc
from rollout.buffer.buffer import Buffer, BufferSpec, BufferState
from rollout.buffer.resume import begin
from rollout.cards import Card
from rollout.store.eventlog import EventLog
from rollout.store.shared import RunFolder
from rollout.types import Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeAnswer:
    """The buffer's answer to `take`: the cards, or None while too few groups are ready, and how far the buffer is."""

    cards: Sequence[Card] | None
    arrivals: int
    counts: Mapping[str, int]
    waiting_for: str
    skipped_rows: int
    """Rows that have been left out of the datasets so far."""


class BufferActor:
    """The ledger and its log, the cards of the finished groups, and the gate.

    A call that has to wait is answered as soon as possible, or with None after `wait_s` seconds. The caller then asks
    again. Because no call waits longer than that, a caller that died is soon forgotten.
    """

    def __init__(
        self, role: str, logs_dir: str, spec: BufferSpec, folder: RunFolder, saved: BufferState | None
    ) -> None:
        enter_role(role, logs_dir)
        folder.check(role)
        from rollout.tasks.stream import task_stream

        self._log = EventLog(folder.log, None if saved is None else saved.position)
        beginning = begin(self._log, saved, folder.trajectories, max_staleness=spec.max_staleness, seed=spec.seed)
        self._tasks = task_stream(spec.tasks, "train", spec.seed)
        self._told = [*beginning.told, *map(str, self._tasks.skipped)]
        self._buffer = Buffer(
            self._tasks,
            beginning.ledger,
            beginning.cards,
            max_staleness=spec.max_staleness,
            groups_per_step=spec.groups_per_step,
            failure_share_limit=spec.failure_share_limit,
            seed=spec.seed,
        )
        relax_gc()
        self._gate = asyncio.Condition()
        self._at_the_gate = 0
        self._finished = asyncio.Condition()

    async def issue(self, wait_s: float, most: int) -> Sequence[tuple[str, Task]]:
        """Return up to `most` next tasks with their issue ids: a fair share for each of the workers that wait. None are
        returned when the gate stayed shut for `wait_s` seconds."""
        self._at_the_gate += 1
        try:
            return await _first(self._gate, lambda: self._share(most), wait_s) or ()
        finally:
            self._at_the_gate -= 1

    def _share(self, most: int) -> Sequence[tuple[str, Task]] | None:
        share = min(most, -(-self._buffer.room // self._at_the_gate))
        issued = (self._buffer.issue() for _ in range(share))
        return [issue for issue in issued if issue is not None] or None

    async def told(self) -> Sequence[str]:
        """What people should know about how this run began."""
        return self._told

    async def put(self, card: Card) -> None:
        self._buffer.put(card)
        await _notify(self._finished)
        if not card.usable:  # its place at the gate is free
            await _notify(self._gate)

    async def take(self, version: int, wait_s: float) -> TakeAnswer:
        """Return the cards of the step that trains `version`, or None for them after `wait_s` seconds."""
        cards = await _first(self._finished, lambda: self._buffer.take(version), wait_s)
        await _notify(self._gate)  # a group that became stale gives its place back
        return TakeAnswer(
            cards=cards,
            arrivals=self._buffer.arrivals,
            counts=self._buffer.ledger.counts(),
            waiting_for=self._buffer.waiting_for(),
            skipped_rows=sum(out.rows for out in self._tasks.skipped),
        )

    async def published(self, version: int) -> None:
        self._buffer.published(version)
        self._log.sync()
        await _notify(self._gate)

    async def mark_trained(self, issue_ids: Sequence[str], step: int) -> Mapping[str, int]:
        """Close the issues in the ledger. Return its counts afterwards."""
        self._buffer.mark_trained(issue_ids, step)
        self._log.sync()
        return self._buffer.ledger.counts()

    async def state(self) -> BufferState:
        """Return the state for a checkpoint. What it refers to in the log and in the store is durable."""
        version = self._buffer.version
        assert version is not None, "weights are published before the first checkpoint"
        self._log.sync()
        return BufferState(
            ledger=self._buffer.ledger.state_dict(),
            position=self._log.position,
            version=version,
            time=time.time(),
            tasks=self._tasks.digest,
        )

    async def watch(self) -> None:
        """Block forever. Callers await this to be notified when the process dies."""
        await asyncio.Event().wait()


async def _first(changed: asyncio.Condition, attempt: Callable[[], T | None], wait_s: float) -> T | None:
    """Call `attempt` after every change until it returns a value. Return None after `wait_s` seconds."""
    async with changed:
        try:
            async with asyncio.timeout(wait_s):
                while (found := attempt()) is None:
                    await changed.wait()
                return found
        except TimeoutError:
            return None


async def _notify(changed: asyncio.Condition) -> None:
    async with changed:
        changed.notify_all()
