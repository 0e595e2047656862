"""Ray actor shells around the acting side: an inference engine, a rollout worker, the buffer.

A shell owns no rule. It gives its process a log, builds the plain object and forwards calls; the decisions are in
`rollout.inference`, `rollout.agent` and `rollout.buffer`, testable without Ray. Heavy imports happen inside the
methods, after the environment of the process is set.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from rewards.errors import InfrastructureError
from rewards.sandbox.config import SandboxConfig
from rollout.buffer import Buffer, BufferSpec, BufferState
from rollout.config import EvalConfig, InferenceConfig, RolloutConfig, WeightSyncConfig
from rollout.process import enter_role
from rollout.types import Completion, Device, Group, SamplingParams, Task

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

ISSUE_POLL_S = 5.0
"""How long a worker's slot waits at the gate before it asks again."""
CONTROL = "control"
ENGINE_CONCURRENCY_GROUPS = {CONTROL: 16}
"""Ray's concurrency groups of an InferenceActor; the default one, for `generate`, takes max_concurrency requests."""


def _control(method: Method) -> Method:
    marked: Method = ray.method(concurrency_group=CONTROL)(method)
    return marked


class InferenceActor:
    """One replica: a vLLM engine and the version of its weights.

    What controls the engine has a concurrency group of its own. If it queued behind `generate`, a paused engine with
    more requests than its max_concurrency would never get to the call that resumes it.
    """

    def __init__(self, role: str, logs_dir: str, threads: int, replica: int) -> None:
        enter_role(role, logs_dir, threads)
        self._replica = replica
        self._engine: Any = None

    async def start(
        self,
        model_path: str,
        dtype: str,
        config: InferenceConfig,
        sync: WeightSyncConfig,
        max_context: int,
        device: Device,
        seed: int,
    ) -> None:
        from rollout.inference import Inference

        self._engine = await Inference.start(
            model_path, dtype, config, sync, max_context, device, seed, replica=self._replica
        )

    async def generate(self, request_id: str, prompt: list[int], sampling: SamplingParams) -> Completion:
        return await self._engine.generate(request_id, prompt, sampling)

    @_control
    async def call(self, method: str, *args: Any) -> Any:
        """One stage of a weight version's life: pause, begin_update, load_bucket, finish_update, checksums, resume."""
        return await getattr(self._engine, method)(*args)

    @_control
    async def watch(self) -> None:
        """Does not return while the engine lives; raises what killed it."""
        await self._engine.watch()

    @_control
    async def shutdown(self) -> None:
        if self._engine is not None:
            await self._engine.shutdown()


class EngineClient:
    """A worker's view of the replicas: a group stays on one, so that its members share the prompt's KV cache."""

    def __init__(self, replicas: Sequence[ActorHandle], group_id: str, timeout_s: float) -> None:
        self._replica = replicas[zlib.crc32(group_id.encode()) % len(replicas)]
        self._timeout_s = timeout_s

    async def generate(self, request_id: str, prompt_token_ids: list[int], sampling: SamplingParams) -> Completion:
        reference = self._replica.generate.remote(request_id, prompt_token_ids, sampling)
        try:
            return await asyncio.wait_for(reference, self._timeout_s)
        except TimeoutError:
            ray.cancel(reference)
            raise InfrastructureError(
                f"request {request_id}: no completion in inference.generate_timeout_s={self._timeout_s:.0f} s"
            ) from None
        except asyncio.CancelledError:
            # Nobody waits for the answer any more: the engine must not go on sampling it.
            ray.cancel(reference)
            raise
        except RayTaskError as error:
            raise InfrastructureError(f"request {request_id}: {error.cause}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a rollout worker needs of the recipe."""

    model_path: str
    renderer: str
    rollout: RolloutConfig
    sandbox: SandboxConfig
    evaluation: EvalConfig
    reward_weights: Mapping[str, float]
    generate_timeout_s: float
    seed: int


class WorkerActor:
    """Runs agent loops: no weights, no GPU. `run` takes tasks from the buffer for ever; `evaluate` runs a given one."""

    def __init__(
        self, role: str, logs_dir: str, spec: WorkerSpec, replicas: Sequence[ActorHandle], buffer: ActorHandle
    ) -> None:
        enter_role(role, logs_dir)
        from rewards.sandbox.sandbox import Sandbox
        from rollout.chat import Chat

        self._spec, self._replicas, self._buffer = spec, replicas, buffer
        self._sandbox = Sandbox(spec.sandbox)
        self._chat = Chat.load(spec.model_path, spec.renderer)
        self._evaluating = asyncio.Semaphore(spec.rollout.groups_per_worker)

    async def run(self) -> None:
        """Every slot: wait at the gate, run a group, hand it over."""
        async with asyncio.TaskGroup() as slots:
            for _ in range(self._spec.rollout.groups_per_worker):
                slots.create_task(self._slot())

    async def _slot(self) -> None:
        while True:
            issue = await self._buffer.issue.remote(ISSUE_POLL_S)
            if issue is not None:
                group_id, task = issue
                await self._buffer.put.remote(await self._group(group_id, task, self._spec.rollout))

    async def evaluate(self, group_id: str, task: Task) -> Group:
        """`samples_per_task` attempts at a held-out task, at the evaluation's temperature.

        No more run at once than in training; the others wait here, before the clock of their trajectories starts.
        """
        config = self._spec.evaluation
        sampling = self._spec.rollout.sampling.model_copy(update={"temperature": config.temperature})
        rollout = self._spec.rollout.model_copy(update={"group_size": config.samples_per_task, "sampling": sampling})
        async with self._evaluating:
            return await self._group(group_id, task, rollout)

    async def _group(self, group_id: str, task: Task, config: RolloutConfig) -> Group:
        from rollout.agent import run_group

        engine = EngineClient(self._replicas, group_id, self._spec.generate_timeout_s)
        return await run_group(
            task,
            self._chat,
            engine,
            self._sandbox,
            config,
            group_id=group_id,
            seed=self._spec.seed,
            reward_weights=self._spec.reward_weights,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeAnswer:
    """What the buffer answers the trainer: the groups, or None while they are not there; and how far it is."""

    groups: Sequence[Group] | None
    arrivals: int
    counts: Mapping[str, int]
    waiting_for: str


class BufferActor:
    """The ledger, the finished groups and the gate; callers wait here, so that nobody polls."""

    def __init__(self, role: str, logs_dir: str, spec: BufferSpec, saved: BufferState | None) -> None:
        enter_role(role, logs_dir)
        from rollout.tasks import task_stream

        self._buffer = Buffer(
            task_stream(spec.tasks, "train"),
            saved,
            max_staleness=spec.max_staleness,
            groups_per_step=spec.groups_per_step,
            failure_share_limit=spec.failure_share_limit,
            seed=spec.seed,
        )
        self._changed = asyncio.Condition()

    async def issue(self, wait_s: float) -> tuple[str, Task] | None:
        """The next task and its issue id; None when the gate stayed shut for `wait_s`."""
        return await self._first(self._buffer.issue, wait_s)

    async def put(self, group: Group) -> None:
        self._buffer.put(group)
        await self._notify()

    async def take(self, version: int, wait_s: float) -> TakeAnswer:
        """The groups of the step that trains `version`, or after `wait_s` how far the buffer is."""
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
        """Close them in the ledger; its counts afterwards."""
        self._buffer.mark_trained(issue_ids, step)
        return self._buffer.ledger.counts()

    async def state(self) -> BufferState:
        return self._buffer.state()

    async def watch(self) -> None:
        """Does not return: who waits for it learns of this process's death."""
        await asyncio.Event().wait()

    async def _first(self, attempt: Callable[[], T | None], wait_s: float) -> T | None:
        """What `attempt` gives as soon as it gives something."""
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
