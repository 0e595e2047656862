"""One inference replica: a vLLM engine, the version of its weights, and the life cycle of a weight version.

    begin_update → load_bucket … → pause → finish_update(version) → resume → [read_back]

Where the transport has no stage, `pause` comes first (`rollout.engine.updates`), and `checksums`, before `resume`,
takes the place of `read_back`.

This module decides which weights the engine samples from. It refuses to sample before the first push, to resume when
only a part of the weights was replaced, and to start with settings that the trainer cannot mirror. `Inference` is a
plain asyncio object; `rollout.actors.engine` puts it in a Ray actor, `rl.weights.publish` drives the life cycle.

**Exact versions.** `Completion.versions[i]` is the version whose weights sampled token i, also for requests that were
running during a push, because of three facts. (1) One thread does everything to the engine: a step (schedule, forward,
sample) ends before the next command runs. (2) vLLM labels the tokens of a step with its current weight version, and
`Requests.step` appends them to their request within the same call, so no token waits anywhere for its label.
(3) The label moves only in `finish_update`, between steps; with asynchronous scheduling `pause` first collects the
steps that were already launched, which the old weights computed, under the old label.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rollout.contracts import EngineDeadError, EngineError
from rollout.engine.settings import EngineSettings
from rollout.engine.sleep import AsleepError, Piece, Sleep
from rollout.engine.thread import EngineThread, engine_core
from rollout.engine.updates import Streamed, updates, worker
from rollout.lora.updates import Adapters
from rollout.transfer.bucket import Bucket
from rollout.transfer.update import Findings, WeightUpdateError
from rollout.types import Completion, SamplingParams, TokenIds, WeightSpec

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """`running` and `waiting` requests, tokens of finished completions, and the used share of the KV cache (0–1)."""

    running: int
    waiting: int
    generated_tokens: int
    kv_usage: float


class Inference:
    """See the module's docstring. Make one with `await Inference.start(...)`."""

    def __init__(self, thread: EngineThread, settings: EngineSettings, replica: int, address: str) -> None:
        self._thread = thread
        self._settings = settings
        self._paused_at: float | None = None
        self._updates = updates(self._call, settings, replica, address)
        self._sleep = Sleep(self._call)
        self._adapters: Adapters | None = None
        if settings.adapters is not None:
            self._adapters = Adapters(settings.adapters.slots, self._rpc, self._abort)

    @classmethod
    async def start(
        cls, settings: EngineSettings, *, replica: int = 0, version: int | None = None, address: str = "127.0.0.1"
    ) -> Inference:
        """Start an engine over the architecture in `settings.model_path`. `address` is this machine's in the cluster.

        With `load_format="dummy"` its weights are random and it refuses to sample until the first push. With "auto"
        they are the checkpoint's own, and `version` says which policy version those are.

        Raises:
            ValueError: an engine argument is refused, or this vLLM is not built for the device.
        """
        assert (settings.load_format == "auto") == (version is not None), "weights that are loaded have a version"
        thread = EngineThread(settings)
        await asyncio.wrap_future(thread.start())
        engine = cls(thread, settings, replica, address)
        init = {"transport": settings.transport, "scale": settings.adapters and settings.adapters.scale}
        await engine._call(lambda llm: worker(llm, "init_weight_transfer_engine", init_info=init))
        if version is not None:
            await engine._call(lambda llm: llm.set_weight_version(str(version)))
            engine._updates.version = version
        return engine

    @property
    def version(self) -> int | None:
        """The policy version that new requests are sampled from; None before the first push."""
        return self._updates.version if self._adapters is None else self._adapters.newest

    @property
    def adapters(self) -> Adapters:
        """The adapters of an engine whose settings have some."""
        assert self._adapters is not None, "the engine takes whole weights"
        return self._adapters

    @property
    def paused_s(self) -> float:
        """For how long the engine has been paused; 0 while it samples."""
        return 0.0 if self._paused_at is None else time.monotonic() - self._paused_at

    async def generate(self, request_id: str, prompt_token_ids: TokenIds, sampling: SamplingParams) -> Completion:
        """Sample one completion. While the engine is paused the request waits; a push of whole weights
        does not end it. With adapters all of it is sampled from the one that is the newest at this moment.

        `logprobs` are natural logs under the distribution sampled from. A sampled stop token is included.

        Raises:
            ValueError: the prompt is empty or leaves no room in the context, or the id is running already.
            EngineError: no weights were pushed yet.
            Superseded: the request's adapter had to go.
            EngineDeadError: the engine died.
        """
        if self.version is None:
            raise EngineError("nothing was pushed to this engine yet: it would sample from random weights")
        if not 0 < len(prompt_token_ids) < self._settings.max_context:
            raise ValueError(
                f"a prompt of {len(prompt_token_ids)} tokens leaves no room: rollout.max_context is "
                f"{self._settings.max_context}"
            )
        # Under `keep`, prompts cached under older weights must not serve new requests.
        salt = str(self._updates.version) if self._settings.cache_policy == "keep" else None
        adapter = None if self._adapters is None else self._adapters.take(request_id)
        running = self._thread.generate(request_id, prompt_token_ids, sampling, salt, adapter)
        try:
            return await self._result(running)
        finally:
            if not running.done() or running.cancelled():
                self._thread.abort(request_id, EngineError(f"request {request_id} was given up"))
            if adapter is not None:
                await self.adapters.give_back(request_id, adapter)

    async def pause(self) -> None:
        """Stop sampling between two steps and keep the running requests. Idempotent."""
        await self._result(self._thread.pause())
        self._paused_at = self._paused_at or time.monotonic()

    async def begin_update(self, version: int, manifest: Sequence[WeightSpec]) -> None:
        """Open the update to `version`; `manifest` lists every tensor that will be sent.

        Another call starts the update over, whether or not one failed before. `load_bucket` and `finish_update` are
        those of `rollout.engine.updates`.

        Raises:
            WeightUpdateError: the engine samples and would load what arrives at once, or `version` is older than its
                weights.
        """
        self._sleep.check(f"update to version {version}", "weights")
        if isinstance(self._updates, Streamed):
            self._check_paused(version)
        await self._updates.begin(version, manifest)

    async def load_bucket(self, *buckets: Bucket) -> None:
        for bucket in buckets:
            await self._updates.load(bucket)

    async def finish_update(self, version: int) -> int:
        """Make the weights that have arrived version `version` and apply the cache policy. Repeating it does nothing.

        Under `recompute` running requests lose their KV cache and continue with all of it computed by the new weights.

        Raises:
            WeightUpdateError: the engine is not paused, or the update is not complete.
        """
        self._check_paused(version)
        return await self._updates.finish(version)

    def _check_paused(self, version: int) -> None:
        if self._paused_at is None:
            raise WeightUpdateError(f"update to version {version}: pause the engine first")

    async def content(self) -> str:
        """The content hash of the last weights that were pushed whole and verified."""
        return self._updates.content

    async def read_back(self) -> Findings | None:
        """Compare the weights that the engine computes with, fused and packed, with those that arrived last. None where
        nothing of these is kept (nccl, ipc), or where several workers divide them."""
        return await self._updates.read_back()

    async def begin_adapter(self, version: int, manifest: Sequence[WeightSpec]) -> int:
        """The four stages of an adapter's way into the engine are those of `rollout.lora.updates`."""
        self._sleep.check(f"adapter of version {version}", "weights")
        await self._updates.clear()
        return await self.adapters.begin(version, manifest)

    async def load_adapter(self, *buckets: Bucket) -> None:
        for bucket in buckets:
            await self.adapters.load(await self._updates.arrived(self.adapters.expected, bucket))

    async def finish_adapter(self, version: int) -> None:
        await self.adapters.finish(version)

    async def use_adapter(self, version: int) -> None:
        await self.adapters.use(version)

    async def resume(self) -> None:
        """Sample again. Idempotent.

        Raises:
            WeightUpdateError: the last update did not finish, so the weights are a mixture: push again.
            AsleepError: a piece of the engine is asleep.
        """
        self._sleep.check("resume", "weights", "kv_cache")
        if damage := self._updates.damage:
            raise WeightUpdateError(f"the engine stays paused: {damage}. Push the weights again")
        await self._result(self._thread.resume())
        self._paused_at = None

    async def sleep(self, keep_weights: bool) -> None:
        """Leave the device to the trainer, until `wake`. Without `keep_weights` only a push of all of them gives the
        engine weights again, and it stays paused until then.

        Raises:
            AsleepError: the engine is not paused.
        """
        if self._paused_at is None:
            raise AsleepError("sleep: pause the engine first")
        if not keep_weights:
            self._updates.give_up("its weights were dropped for the trainer's turn")
        await self._sleep.fall(keep_weights=keep_weights)

    async def wake(self, piece: Piece) -> None:
        """Take back the weights, then the KV cache (`rollout.engine.sleep`)."""
        await self._sleep.wake(piece)

    async def checksums(self) -> dict[str, str]:
        """Return a hash of every weight as the engine computes with it, fused and packed.

        The keys are vLLM's names after the worker's place (`dp0:pp0:pcp0:tp1:model.norm.weight`), so that workers do
        not collide.
        """
        workers = await self._call(lambda llm: llm.collective_rpc("sluice_checksums"))
        return {name: digest for worker in workers for name, digest in worker.items()}

    async def stats(self) -> EngineStats:
        def read(llm: LLMEngine) -> tuple[int, int, float]:
            scheduler = engine_core(llm).scheduler
            running, waiting = scheduler.get_request_counts()
            return running, waiting, scheduler.kv_cache_manager.usage

        running, waiting, usage = await self._call(read)
        return EngineStats(
            running=running,
            waiting=waiting,
            generated_tokens=self._thread.generated_tokens,
            kv_usage=usage,
        )

    async def watch(self) -> None:
        """Wait for the engine's end. Raise EngineDeadError if it dies; return after `shutdown`."""
        await self._result(self._thread.dead)

    async def shutdown(self) -> None:
        """Free the engine; running requests fail. Idempotent."""
        self._updates.close()
        await asyncio.to_thread(self._thread.shutdown)

    async def _rpc(self, method: str, *arguments: Any) -> Any:
        return await self._call(lambda llm: llm.collective_rpc(method, args=arguments))

    async def _abort(self, request_id: str, reason: Exception) -> None:
        await self._result(self._thread.abort(request_id, reason))

    async def _call(self, command: Callable[[LLMEngine], T]) -> T:
        return await self._result(self._thread.submit(command))

    async def _result(self, future: Future[T]) -> T:
        """Return the future's result. If the engine is dead, raise EngineDeadError from the cause."""
        try:
            return await asyncio.wrap_future(future)
        except Exception as error:
            dead = self._thread.dead
            if dead.done() and (error is dead.exception() or dead.exception() is None):
                raise EngineDeadError(f"the vLLM engine is gone: {type(error).__name__}: {error}") from error
            raise
