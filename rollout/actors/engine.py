"""Ray shells around an inference engine: the actor that owns one, and the client through which a worker calls it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from rewards.errors import InfrastructureError
from rollout.actors.process import enter_role
from rollout.engine.settings import EngineSettings
from rollout.types import Completion, SamplingParams, TokenIds

Method = TypeVar("Method", bound=Callable[..., Any])

CONTROL = "control"
ENGINE_CONCURRENCY_GROUPS = {CONTROL: 16}
"""Ray's concurrency groups of an InferenceActor, with the number of calls each runs at once.

`generate` is in the default group, which runs max_concurrency calls.
"""


def _control(method: Method) -> Method:
    marked: Method = ray.method(concurrency_group=CONTROL)(method)
    return marked


class InferenceActor:
    """One replica: a vLLM engine and the version of its weights.

    Control calls (pause, load, resume) run in their own Ray concurrency group. If they queued behind `generate`, a
    paused engine with more requests than its max_concurrency would never get to the call that resumes it.
    """

    def __init__(self, role: str, logs_dir: str, threads: int, replica: int) -> None:
        enter_role(role, logs_dir, threads)
        self._replica = replica
        self._engine: Any = None

    async def start(self, settings: EngineSettings) -> None:
        """Build the engine; it refuses to sample until the first push."""
        from rollout.engine.inference import Inference

        self._engine = await Inference.start(settings, replica=self._replica)

    async def generate(self, request_id: str, prompt: TokenIds, sampling: SamplingParams) -> Completion:
        return await self._engine.generate(request_id, prompt, sampling)

    @_control
    async def call(self, method: str, *args: Any) -> Any:
        """Call a stage of a weight update: pause, begin_update, load_bucket, finish_update, checksums or resume."""
        return await getattr(self._engine, method)(*args)

    @_control
    async def watch(self) -> None:
        """Block while the engine lives. Raise EngineDeadError if it dies; return after a shutdown."""
        await self._engine.watch()

    @_control
    async def shutdown(self) -> None:
        if self._engine is not None:
            await self._engine.shutdown()


class EngineClient:
    """The client of one group. All its requests go to one replica, so that its members share the prompt's KV cache.

    `timeout_s` limits one completion, in seconds; None leaves that to the caller's own deadline.
    """

    def __init__(self, replicas: Sequence[ActorHandle], group_id: str, timeout_s: float | None) -> None:
        self._replica = replicas[zlib.crc32(group_id.encode()) % len(replicas)]
        self._timeout_s = timeout_s

    async def generate(self, request_id: str, prompt_token_ids: TokenIds, sampling: SamplingParams) -> Completion:
        reference = self._replica.generate.remote(request_id, prompt_token_ids, sampling)
        try:
            return await asyncio.wait_for(reference, self._timeout_s)
        except TimeoutError:
            ray.cancel(reference)
            raise InfrastructureError(
                f"request {request_id}: no completion in inference.generate_timeout_s={self._timeout_s:g} s"
            ) from None
        except asyncio.CancelledError:
            # Nobody waits for the answer any more, so the engine must stop sampling it.
            ray.cancel(reference)
            raise
        except RayTaskError as error:
            raise InfrastructureError(f"request {request_id}: {error.cause}") from error
