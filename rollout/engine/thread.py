"""A vLLM engine and the one thread that touches it.

The engine core runs in this process (vLLM's in-process LLMEngine) instead of behind AsyncLLM's sockets. On two cores
that starts in 3 s instead of 27 s, because nothing is imported twice, and one process fewer competes for the cores. A
step is then an ordinary call, so it is certain what happens before and after it. Pause, weight transfer and caches are
vLLM's own (`pause_scheduler("keep")`, the worker's start/update/finish_weight_update, weight versions,
`reset_prefix_cache`), and are what AsyncLLM's methods call as well. With tensor parallelism vLLM spawns its workers
from here.

The engine's thread does everything: it runs queued commands between steps, and steps while requests are running.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from rollout.engine.arguments import check_engine_args, set_vllm_environment
from rollout.engine.requests import Requests
from rollout.engine.settings import EngineSettings
from rollout.lora.arguments import adapter_arguments
from rollout.types import Completion, SamplingParams, TokenIds

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.llm_engine import LLMEngine

T = TypeVar("T")

KV_CACHE_GIB = 1.0
"""KV cache of an engine on CPU if the recipe sets none."""


class EngineThread:
    """Owns the engine. Every public method may be called from any thread; all but `shutdown` return at once."""

    def __init__(self, settings: EngineSettings) -> None:
        self.dead: Future[None] = Future()
        """Fails with the exception that killed the engine; gets a result at an orderly shutdown."""
        self.generated_tokens = 0
        self._settings = settings
        self._commands: queue.SimpleQueue[tuple[Callable[[LLMEngine], Any], Future[Any]]] = queue.SimpleQueue()
        self._requests = Requests()
        self._paused = False
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)

    def start(self) -> Future[None]:
        """Build the engine. The future ends when the engine is ready; if building fails, it and `dead` fail."""
        started = self.submit(lambda engine: None)
        self._thread.start()
        return started

    def submit(self, command: Callable[[LLMEngine], T]) -> Future[T]:
        """Run `command` on the engine's thread, between two steps."""
        future: Future[T] = Future()
        with self._lock:
            if self.dead.done():
                error = self.dead.exception()
                future.set_exception(RuntimeError("the engine was shut down") if error is None else error)
            else:
                self._commands.put((command, future))
        return future

    def generate(
        self,
        request_id: str,
        prompt: TokenIds,
        sampling: SamplingParams,
        cache_salt: str | None,
        adapter: int | None = None,
    ) -> Future[Completion]:
        """Queue a request, for the adapter of a version if one is given."""
        finished: Future[Completion] = Future()

        def add(engine: LLMEngine) -> None:
            self._requests.add(engine, request_id, prompt, sampling, cache_salt, adapter, finished)

        def forward(added: Future[None]) -> None:
            error = added.exception()
            if error is not None:
                _fail(finished, error)

        self.submit(add).add_done_callback(forward)
        return finished

    def abort(self, request_id: str, reason: Exception) -> Future[None]:
        """Fail a request with `reason`. Do nothing if it has ended."""

        def run(engine: LLMEngine) -> None:
            running = self._requests.abort(engine, request_id)
            if running is not None:
                _fail(running, reason)

        return self.submit(run)

    def pause(self) -> Future[None]:
        """Stop stepping, keep requests. Afterwards every token sampled so far has its version and is in its request."""

        def run(engine: LLMEngine) -> None:
            core = engine_core(engine)
            core.pause_scheduler(mode="keep", clear_cache=False)
            while core.batch_queue:
                self._step(engine)
            self._paused = True

        return self.submit(run)

    def resume(self) -> Future[None]:
        def run(engine: LLMEngine) -> None:
            engine_core(engine).resume_scheduler()
            self._paused = False

        return self.submit(run)

    def shutdown(self) -> None:
        """Stop after the current step and free everything. Blocks; idempotent."""
        self._closing = True
        self.submit(lambda engine: None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        engine: LLMEngine | None = None
        try:
            engine = build_engine(self._settings, on_worker_failure=self._worker_failed)
            while not self._closing:
                self._run_commands(engine, block=self._paused or not self._requests)
                if not self._paused and self._requests and not self._closing:
                    self._step(engine)
        except BaseException as error:
            self._end(error)
        finally:
            if engine is not None:
                engine.engine_core.shutdown()
            self._end(None)

    def _run_commands(self, engine: LLMEngine, block: bool) -> None:
        while True:
            try:
                command, future = self._commands.get(block=block)
            except queue.Empty:
                return
            block = False
            try:
                _settle(future, command(engine))
            except Exception as error:
                _fail(future, error)

    def _step(self, engine: LLMEngine) -> None:
        try:
            for finished, completion in self._requests.step(engine):
                self.generated_tokens += len(completion.token_ids)
                _settle(finished, completion)
        except Exception as error:
            # Close the engine even if a command made the step: a failed step loses the requests' state.
            self._closing = True
            self._end(error)
            raise

    def _worker_failed(self) -> None:
        # vLLM's monitor thread calls this. The engine's own thread may be waiting for that worker or be idle.
        self._end(RuntimeError("a vLLM worker process died"))
        self._closing = True
        self._commands.put((lambda engine: None, Future()))

    def _end(self, error: BaseException | None) -> None:
        """Mark the engine as dead, if it is not yet, and fail all open requests and commands, so that nobody waits."""
        with self._lock:
            if not self.dead.done():
                self.dead.set_result(None) if error is None else self.dead.set_exception(error)
            reason = self.dead.exception() or RuntimeError("the engine was shut down")
            waiting: list[Future[Any]] = [*self._requests.drain()]
            while not self._commands.empty():
                waiting.append(self._commands.get()[1])
        for future in waiting:
            _fail(future, reason)


def build_engine(settings: EngineSettings, on_worker_failure: Callable[[], None]) -> LLMEngine:
    """Import vLLM and build the engine, in the thread that will own it."""
    config = settings.config
    eager = bool(config.engine_args.get("enforce_eager", settings.device == "cpu"))
    set_vllm_environment(os.environ, settings.device, config.cpu_threads, eager)

    import torch

    if settings.device == "cpu":
        torch.set_num_threads(config.cpu_threads)

    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    if current_platform.is_cpu() != (settings.device == "cpu"):
        raise ValueError(
            f"this vLLM is built for {current_platform.device_type}, the run wants {settings.device}: "
            f"start it with SLUICE_DEVICE={settings.device} ./launch.sh …, which takes the environment for that"
        )
    check_engine_args(config.engine_args, [field.name for field in fields(EngineArgs)])
    arguments = EngineArgs(**_engine_arguments(settings, eager))
    vllm_config = arguments.create_engine_config(UsageContext.LLM_CLASS)
    engine = LLMEngine(
        vllm_config=vllm_config,
        executor_class=Executor.get_class(vllm_config),
        log_stats=False,
        multiprocess_mode=False,
    )
    engine.model_executor.register_failure_callback(on_worker_failure)
    return engine


def _engine_arguments(settings: EngineSettings, eager: bool) -> dict[str, Any]:
    from vllm.config.weight_transfer import WeightTransferConfig

    from rollout.cpu.kernels import PRIORITY
    from rollout.engine.worker import BACKEND, WorkerExtension

    chosen = {
        "model": settings.model_path,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_context,
        "tensor_parallel_size": settings.width,
        "distributed_executor_backend": "uni" if settings.width == 1 else "mp",
        "load_format": settings.load_format,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
        "worker_extension_cls": f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
        "enforce_eager": eager,
        "disable_log_stats": True,
    }
    if settings.device == "cpu":
        # An explicit size also skips vLLM's profiling run.
        chosen["kv_cache_memory_bytes"] = int((settings.config.kv_cache_gib or KV_CACHE_GIB) * 2**30)
        # vLLM rewinds the generator of a seeded request whose prompt was only partly computed in a step. torch's CPU
        # generators can't be rewound, so the engine would die the first time a step is too small for all prompts.
        chosen["enable_chunked_prefill"] = False
        # The prefix cache keeps whole blocks, and vLLM's own choice on CPU, 128, is as long as many a prompt.
        chosen["block_size"] = 32
        chosen["ir_op_priority"] = PRIORITY
    elif settings.placement == "colocated":
        chosen["enable_sleep_mode"] = True
    if settings.adapters is not None:
        chosen |= adapter_arguments(settings.adapters, settings.model_path)
    return chosen | settings.config.engine_args


def engine_core(engine: LLMEngine) -> EngineCore:
    """Return the in-process core. LLMEngine has no pause itself; AsyncLLM's calls the core's through a socket."""
    return engine.engine_core.engine_core


def _settle(future: Future[T], result: T) -> None:
    # The future may have been cancelled, or failed by the engine's death, at this very moment.
    with suppress(InvalidStateError):
        future.set_result(result)


def _fail(future: Future[Any], error: BaseException) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)
