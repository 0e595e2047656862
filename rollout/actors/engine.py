"""Ray shells around an inference engine: the actor that owns one, and the client through which a worker calls it."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from rewards.errors import InfrastructureError, one_line
from rollout.actors.process import EXACT_PINNED, enter_role, settling_in
from rollout.contracts import EngineDeadError
from rollout.engine.choice import EngineChoice, EngineStatus
from rollout.engine.exchange import Answer, Desk, Line, Request
from rollout.engine.settings import EngineSettings
from rollout.types import Completion, SamplingParams, TokenIds

log = logging.getLogger(__name__)

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

    def __init__(self, role: str, logs_dir: str, threads: int, replica: int, gpus: Sequence[str] | None = None) -> None:
        """`gpus` are those of trainer ranks, which it shares; None: those that Ray has given to it."""
        enter_role(role, logs_dir, threads)
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            os.environ.setdefault("PYTORCH_ALLOC_CONF", EXACT_PINNED)
        self._replica = replica
        self._engine: Any = None
        self._outstanding = 0
        self._desk = Desk(self.generate)

    async def start(self, settings: EngineSettings) -> None:
        """Build the engine. It refuses to sample until the first push, unless it loads a model's own weights."""
        with settling_in():
            from rollout.engine.inference import Inference

            version = 0 if settings.load_format == "auto" else None
            address = ray.util.get_node_ip_address()
            self._engine = await Inference.start(settings, replica=self._replica, version=version, address=address)

    async def generate(self, request_id: str, prompt: TokenIds, sampling: SamplingParams) -> Completion:
        """Sample one completion. If vLLM has died, wait for the end of this process, which `watch` brings about: every
        caller hears of that, and leaves this engine."""
        tokens = len(prompt) + sampling.max_tokens
        self._outstanding += tokens
        try:
            return await self._engine.generate(request_id, prompt, sampling)
        except EngineDeadError:
            await asyncio.Event().wait()
            raise
        finally:
            self._outstanding -= tokens

    async def exchange(self, line: str, requests: Sequence[Request]) -> list[Answer]:
        """Begin a line's requests and return what has finished of that line (`rollout.engine.exchange`)."""
        return await self._desk.exchange(line, requests)

    async def give_up(self, request_id: str) -> None:
        """End a request that nobody waits for any more."""
        self._desk.give_up(request_id)

    @_control
    async def status(self) -> EngineStatus:
        """Say how busy the engine is, and whether it can serve."""
        engine = self._engine
        return EngineStatus(
            outstanding=self._outstanding,
            ready=engine is not None and engine.version is not None,
            paused_s=0.0 if engine is None else engine.paused_s,
        )

    @_control
    async def call(self, method: str, *args: Any) -> Any:
        """Call a stage of a weight update, or of an adapter's (rl.weights.publish lists them)."""
        return await getattr(self._engine, method)(*args)

    @_control
    async def watch(self) -> None:
        """Block while the engine lives. Raise EngineDeadError if it dies; return after a shutdown."""
        await self._engine.watch()

    @_control
    async def shutdown(self) -> None:
        if self._engine is not None:
            await self._engine.shutdown()


class Engines:
    """The engines as one worker sees them, by their numbers."""

    def __init__(self, replicas: Mapping[int, ActorHandle]) -> None:
        self._replicas = dict(replicas)
        self._lines = {number: _line(replica) for number, replica in replicas.items()}
        self.choice = EngineChoice(self._replicas.keys(), self._status)

    def __getitem__(self, engine: int) -> Line:
        return self._lines[engine]

    def use(self, engine: int, replica: ActorHandle) -> None:
        """Use a process as that engine, because a former one has died, or because there was none."""
        self._replicas[engine], self._lines[engine] = replica, _line(replica)
        self.choice.forget()

    async def _status(self, engine: int) -> EngineStatus:
        status: EngineStatus = await self._replicas[engine].status.remote()
        return status


def _line(replica: ActorHandle) -> Line:
    return Line(partial(replica.exchange.remote, uuid.uuid4().hex), replica.give_up.remote)


class EngineClient:
    """The client of one group. Its first request chooses an engine, and all others follow. When that engine dies,
    another one is chosen, and samples what this one had not finished: a request has all tokens of its conversation.

    `tokens` is the most that the group may have in engines at once. `timeout_s` limits one completion, in seconds; None
    leaves that to the caller's own deadline. `close` it when the group has ended.
    """

    def __init__(self, engines: Engines, group_id: str, tokens: int, timeout_s: float | None) -> None:
        self._engines = engines
        self._group_id = group_id
        self._tokens = tokens
        self._timeout_s = timeout_s
        self._engine: int | None = None
        self._choosing = asyncio.Lock()

    async def generate(self, request_id: str, prompt_token_ids: TokenIds, sampling: SamplingParams) -> Completion:
        tokens = len(prompt_token_ids) + sampling.max_tokens
        while True:
            engine = await self._chosen()
            self._engines.choice.started(engine, tokens)
            try:
                return await self._completion(engine, request_id, prompt_token_ids, sampling)
            except RayActorError as error:
                log.warning("request %s: engine %d has died (%s)", request_id, engine, one_line(str(error), 200))
                self._leave(engine)
            finally:
                self._engines.choice.ended(engine, tokens)

    def close(self) -> None:
        """Let the engine go."""
        if self._engine is not None:
            self._engines.choice.release(self._engine, self._tokens)
            self._engine = None

    async def _chosen(self) -> int:
        async with self._choosing:
            if self._engine is None:
                self._engine = await self._engines.choice.choose(self._group_id, self._tokens)
            return self._engine

    def _leave(self, engine: int) -> None:
        if self._engine == engine:  # else another member has done so
            self.close()
            self._engines.choice.forget()

    async def _completion(
        self, engine: int, request_id: str, prompt_token_ids: TokenIds, sampling: SamplingParams
    ) -> Completion:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._engines[engine].generate(request_id, prompt_token_ids, sampling)
        except TimeoutError:
            raise InfrastructureError(
                f"request {request_id}: no completion in inference.generate_timeout_s={self._timeout_s:g} s"
            ) from None
        except RayTaskError as error:
            raise InfrastructureError(f"request {request_id}: {error.cause}") from error
