"""The requests that run in an engine: how they get in, and what has been sampled for each.

The outputs of a step are taken from vLLM's engine core as they are. Its own output processor makes text, statistics and
spans of versions of them, of which nothing is used here and which took a fifteenth of a decoding step.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from rollout.lora.names import adapter_id, adapter_name
from rollout.types import Completion, SamplingParams, TokenIds

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.llm_engine import LLMEngine

_FINISH: dict[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}


@dataclass(slots=True)
class Request:
    """A running request: the caller's id, the future that gets its completion, and its tokens so far."""

    request_id: str
    finished: Future[Completion]
    adapter: int | None = None
    """The policy version whose adapter samples all of it; None: the engine's weights do."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def extend(self, output: EngineCoreOutput, version: str) -> None:
        """Append the tokens of a step, which weights of that version sampled, or the request's adapter."""
        if output.new_token_ids:
            assert output.new_logprobs is not None, "every request asks for the sampled tokens' logprobs"
            self.token_ids += output.new_token_ids
            self.logprobs += output.new_logprobs.logprobs[:, 0].tolist()  # the sampled token comes first
            sampled_by = int(version) if self.adapter is None else self.adapter
            self.versions += [sampled_by] * len(output.new_token_ids)

    def completion(self, reason: object) -> Completion:
        """What was sampled.

        Raises:
            RuntimeError: the request ended with another `reason` than a stop token or its length.
        """
        if str(reason) not in _FINISH:
            raise RuntimeError(f"request {self.request_id} ended with {str(reason)!r}")
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs=np.array(self.logprobs, np.float32),
            versions=np.array(self.versions),
            finish_reason=_FINISH[str(reason)],
        )


class Requests:
    """All requests of one engine. Only the engine's thread may use it, but for `__len__` and `drain`."""

    def __init__(self) -> None:
        self._running: dict[str, Request] = {}
        self._core_ids: dict[str, str] = {}
        """The engine core's ids of requests, which are never used again, by the callers' ids."""

    def __len__(self) -> int:
        return len(self._running)

    def add(
        self,
        engine: LLMEngine,
        request_id: str,
        prompt: TokenIds,
        sampling: SamplingParams,
        cache_salt: str | None,
        adapter: int | None,
        finished: Future[Completion],
    ) -> None:
        """Queue a request, for the adapter of a policy version if one is given. The engine must hold that.

        Raises:
            ValueError: a request with that id is running, or vLLM refuses the prompt or a parameter.
        """
        if request_id in self._core_ids:
            raise ValueError(f"request id {request_id!r} is already running: ids must be unique")
        core_id = _add(engine, request_id, prompt, sampling, cache_salt, adapter)
        self._core_ids[request_id] = core_id
        self._running[core_id] = Request(request_id, finished, adapter)

    def abort(self, engine: LLMEngine, request_id: str) -> Future[Completion] | None:
        """Take a request out of the engine and return its future; None if it has ended."""
        core_id = self._core_ids.get(request_id)
        if core_id is None:
            return None
        engine.engine_core.abort_requests([core_id])
        return self._pop(core_id).finished

    def step(self, engine: LLMEngine) -> Iterator[tuple[Future[Completion], Completion]]:
        """Run one step of the engine. Yield what has ended with it; whatever was not yielded can be drained.

        Raises:
            RuntimeError: a request ended otherwise than by a stop token or its length.
        """
        outputs = engine.engine_core.get_output()
        for output in outputs.outputs:
            request = self._running.get(output.request_id)
            if request is None:  # given up meanwhile
                continue
            request.extend(output, outputs.weight_version)
            if output.finish_reason is not None:
                completion = request.completion(output.finish_reason)
                self._pop(output.request_id)
                yield request.finished, completion

    def drain(self) -> list[Future[Completion]]:
        """Forget all requests and return their futures."""
        futures = [request.finished for request in self._running.values()]
        self._running.clear()
        self._core_ids.clear()
        return futures

    def _pop(self, core_id: str) -> Request:
        request = self._running.pop(core_id)
        del self._core_ids[request.request_id]
        return request


def _add(
    engine: LLMEngine,
    request_id: str,
    prompt: TokenIds,
    sampling: SamplingParams,
    cache_salt: str | None,
    adapter: int | None,
) -> str:
    """Queue one request and return its name in the engine core. Every sampling parameter is given, so that no default
    of the engine or the model applies."""
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.inputs.engine import tokens_input

    parameters = VllmSamplingParams(
        n=1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=0.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        min_tokens=0,
        # The model's own end token is a stop token only if it is among ours.
        ignore_eos=True,
        stop_token_ids=list(sampling.stop_token_ids),
        logprobs=0,
        detokenize=False,
    )
    request = engine.input_processor.process_inputs(
        request_id,
        tokens_input(np.asarray(prompt).tolist(), cache_salt=cache_salt),
        parameters,
        lora_request=None if adapter is None else _named(adapter),
        supported_tasks=engine.get_supported_tasks(),
    )
    engine.input_processor.assign_request_id(request)
    engine.engine_core.add_request(request)
    return request.request_id


def _named(adapter: int) -> LoRARequest:
    """The name of an adapter that every worker holds already. vLLM wants a path, and would read it if it did not."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter_name(adapter), adapter_id(adapter), adapter_name(adapter))
