"""The Ray shell around a rollout worker.

Like every shell it decides nothing. It gives its process a log, builds the plain objects and forwards calls; the
decisions are in `rollout.agent.loop` and are testable without Ray. Heavy imports happen inside the methods, after the
environment of the process is set.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from rewards.sandbox.config import SandboxConfig
from rollout.actors.engine import EngineClient, Engines
from rollout.actors.process import enter_role, relax_gc, settling_in
from rollout.agent.config import EvalConfig, RolloutConfig
from rollout.cards import Card, card_of, samples_of
from rollout.chat.config import RendererSettings
from rollout.store.config import TrajectoriesConfig
from rollout.store.shared import RunFolder
from rollout.store.writing import GroupWriter
from rollout.tasks.config import TaskSource
from rollout.types import Address, Group, Sample, Split, Task

log = logging.getLogger(__name__)

ISSUE_POLL_S = 5.0
"""Seconds that a worker waits at the gate before it asks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """The parts of a recipe that a rollout worker needs."""

    model_path: str
    renderer: RendererSettings
    sources: tuple[TaskSource, ...]
    rollout: RolloutConfig
    evaluation: EvalConfig
    sandbox: SandboxConfig
    trajectories: TrajectoriesConfig
    folder: RunFolder
    generate_timeout_s: float | None
    seed: int


class WorkerActor:
    """Runs agent loops, without weights or a GPU.

    `run` takes tasks from the buffer for ever; `evaluate` runs a given one. Finished groups go to this worker's own
    segments of the trajectory store; only their cards leave this process by Ray.
    """

    def __init__(
        self,
        role: str,
        logs_dir: str,
        spec: WorkerSpec,
        replicas: Mapping[int, ActorHandle],
        buffer: ActorHandle | None,
    ) -> None:
        enter_role(role, logs_dir)
        spec.folder.check(role)
        with settling_in():
            from rewards.sandbox.sandbox import Sandbox
            from rollout.agent.source import make_sources
            from rollout.chat.registry import load_chat

            self._chat = load_chat(spec.renderer, spec.model_path)
        self._spec, self._engines = spec, Engines(replicas)
        self._buffer: Any = buffer
        sandbox = Sandbox(spec.sandbox)
        self._sources = make_sources(spec.sources, sandbox, spec.rollout.workers)
        if any(source.uses_sandbox for source in self._sources.values()):
            sandbox.require()
        self._store = GroupWriter(spec.folder.trajectories, spec.trajectories)
        self._evaluating = asyncio.Semaphore(spec.rollout.groups_per_worker)
        relax_gc()

    async def run(self) -> None:
        """Take tasks for ever, and run up to `groups_per_worker` groups at once. What may begin is asked for in one
        call: an actor runs at most 1,000, and engines get the requests of several groups in one message."""
        assert self._buffer is not None, "a worker without a buffer evaluates only"
        running: set[asyncio.Task[None]] = set()
        room = asyncio.Event()

        def ended(group: asyncio.Task[None]) -> None:
            running.discard(group)
            room.set()

        async with asyncio.TaskGroup() as groups:
            while True:
                room.clear()
                if not (free := self._spec.rollout.groups_per_worker - len(running)):
                    await room.wait()
                    continue
                for group_id, task in await self._buffer.issue.remote(ISSUE_POLL_S, free):
                    group = groups.create_task(self._train(group_id, task))
                    running.add(group)
                    group.add_done_callback(ended)

    async def _train(self, group_id: str, task: Task) -> None:
        """Run and store a group, and hand its card over."""
        group, address = await self._kept(await self._group(group_id, task, self._spec.rollout), "train")
        await self._buffer.put.remote(card_of(group, address, _shared(samples_of(group))))

    async def evaluate(self, group_id: str, task: Task) -> Card:
        """Run `samples_per_task` attempts at a held-out task, with the evaluation's sampling settings.

        At most `groups_per_worker` such groups run at once. The others wait here, before the deadlines of their
        trajectories begin to run.
        """
        async with self._evaluating:
            group = await self._group(group_id, task, self._spec.evaluation.rollout(self._spec.rollout))
        from rollout.agent.rescore import answer_of

        group, address = await self._kept(group, "eval")
        source = self._sources[task.source]
        return card_of(group, address, votes=[source.vote(answer_of(one)) for one in group.trajectories])

    async def use_engine(self, number: int, replica: ActorHandle) -> None:
        """Send requests for this engine to that process, which is new."""
        self._engines.use(number, replica)

    async def seal(self) -> None:
        """Seal what this worker has written so far, for people to open."""
        await self._store.seal()

    async def _kept(self, group: Group, split: Split) -> tuple[Group, Address]:
        """Store a group. One that cannot be written down is an infrastructure failure of that group."""
        from rollout.agent.loop import lost

        try:
            return group, await self._store.append(group, split)
        except OSError:  # the disk, and not the group
            raise
        except Exception as error:
            log.error("group %s cannot be stored", group.id, exc_info=error)
            group = lost(group, error)
            return group, await self._store.append(group, split)

    async def _group(self, group_id: str, task: Task, config: RolloutConfig) -> Group:
        from rollout.agent.episode import Agent
        from rollout.agent.loop import run_group

        tokens = config.group_size * config.max_context
        engine = EngineClient(self._engines, group_id, tokens, self._spec.generate_timeout_s)
        agent = Agent(chat=self._chat, engine=engine, config=config, seed=self._spec.seed)
        try:
            return await run_group(agent, self._sources[task.source], task, group_id)
        finally:
            engine.close()


def _shared(samples: Sequence[Sample]) -> ray.ObjectRef | None:
    """Put samples into Ray's object store, from which the trainer's ranks get them without another copy. None where
    there is no room for them: the ranks then read the segment."""
    try:
        return ray.put(tuple(samples))
    except ray.exceptions.RayError as error:
        log.warning("%d samples do not go into the object store: %s", len(samples), error)
        return None
