"""The Ray shell around the buffer. The rules are in `rollout.buffer.buffer`; here callers wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rollout.actors.process import enter_role
from rollout.buffer.buffer import Buffer, BufferSpec, BufferState
from rollout.types import Group, Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeAnswer:
    """The buffer's answer to `take`: the groups, or None while too few are ready, and how far the buffer is."""

    groups: Sequence[Group] | None
    arrivals: int
    counts: Mapping[str, int]
    waiting_for: str


class BufferActor:
    """The ledger, the finished groups and the gate.

    A call that has to wait is answered as soon as possible, or with None after `wait_s` seconds. The caller then asks
    again. Because no call waits longer than that, a caller that died is soon forgotten.
    """

    def __init__(self, role: str, logs_dir: str, spec: BufferSpec, saved: BufferState | None) -> None:
        enter_role(role, logs_dir)
        from rollout.tasks.stream import task_stream

        self._buffer = Buffer(
            task_stream(spec.tasks, "train", spec.seed),
            saved,
            max_staleness=spec.max_staleness,
            groups_per_step=spec.groups_per_step,
            failure_share_limit=spec.failure_share_limit,
            seed=spec.seed,
        )
        self._changed = asyncio.Condition()

    async def issue(self, wait_s: float) -> tuple[str, Task] | None:
        """Return the next task and its issue id, or None when the gate stayed shut for `wait_s` seconds."""
        return await self._first(self._buffer.issue, wait_s)

    async def put(self, group: Group) -> None:
        self._buffer.put(group)
        await self._notify()

    async def take(self, version: int, wait_s: float) -> TakeAnswer:
        """Return the groups of the step that trains `version`, or None for them after `wait_s` seconds."""
        groups = await self._first(lambda: self._buffer.take(version), wait_s)
        return TakeAnswer(
            groups=groups,
            arrivals=self._buffer.arrivals,
            counts=self._buffer.ledger.counts(),
            waiting_for=self._buffer.waiting_for(),
        )

    async def published(self, version: int) -> None:
        self._buffer.published(version)
        await self._notify()

    async def mark_trained(self, issue_ids: Sequence[str], step: int) -> Mapping[str, int]:
        """Close the issues in the ledger. Return its counts afterwards."""
        self._buffer.mark_trained(issue_ids, step)
        return self._buffer.ledger.counts()

    async def state(self) -> BufferState:
        return self._buffer.state()

    async def watch(self) -> None:
        """Block forever. Callers await this to be notified when the process dies."""
        await asyncio.Event().wait()

    async def _first(self, attempt: Callable[[], T | None], wait_s: float) -> T | None:
        """Call `attempt` after every change until it returns a value. Return None after `wait_s` seconds."""
        async with self._changed:
            try:
                async with asyncio.timeout(wait_s):
                    while (found := attempt()) is None:
                        await self._changed.wait()
                    return found
            except TimeoutError:
                return None

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
