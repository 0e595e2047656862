"""What becomes of requests whose step goes wrong, over outputs as vLLM's engine core makes them."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists

from rollout.engine.requests import Requests
from rollout.types import Completion, SamplingParams


class Core:
    """An engine core, in the place of an engine too, that answers with the given steps."""

    def __init__(self, *steps: list[EngineCoreOutput]) -> None:
        self.engine_core = self.input_processor = self
        self.steps = list(steps)
        self.aborted: list[str] = []

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def process_inputs(self, request_id: str, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(request_id=request_id)

    def assign_request_id(self, request: Any) -> None:
        request.request_id += "-core"

    def add_request(self, request: Any) -> None:
        pass

    def abort_requests(self, ids: list[str]) -> None:
        self.aborted += ids

    def get_output(self) -> EngineCoreOutputs:
        outputs = EngineCoreOutputs(outputs=self.steps.pop(0))
        outputs.weight_version = str(10 - len(self.steps))
        return outputs


def sampled(name: str, token: int, reason: FinishReason | None = None) -> EngineCoreOutput:
    logprobs = LogprobsLists(np.array([[token]]), np.array([[-token / 8]], np.float32), np.array([1]))
    return EngineCoreOutput(f"{name}-core", [token], new_logprobs=logprobs, finish_reason=reason)


def running(core: Any, *names: str) -> tuple[Requests, dict[str, Future[Completion]]]:
    requests = Requests()
    futures: dict[str, Future[Completion]] = {name: Future() for name in names}
    for name, future in futures.items():
        requests.add(core, name, [1], SamplingParams(max_tokens=9), None, None, future)
    return requests, futures


def test_tokens_carry_the_version_of_their_step() -> None:
    core = Core([sampled("a", 1)], [sampled("a", 2), sampled("b", 3)], [sampled("a", 4, FinishReason.STOP)])
    requests, futures = running(core, "a", "b")
    ended = [pair for _ in range(3) for pair in requests.step(core)]  # type: ignore[arg-type]
    assert [future for future, _ in ended] == [futures["a"]] and len(requests) == 1
    completion = ended[0][1]
    assert completion.token_ids == (1, 2, 4) and completion.finish_reason == "stop"
    assert completion.versions.tolist() == [8, 9, 10] and completion.logprobs.tolist() == [-1 / 8, -2 / 8, -4 / 8]


def test_an_id_is_free_again_when_its_request_was_given_up() -> None:
    core = Core([sampled("a", 1, FinishReason.LENGTH)])
    requests, futures = running(core, "a")
    with pytest.raises(ValueError, match="'a' is already running"):
        requests.add(core, "a", [1], SamplingParams(max_tokens=9), None, None, Future())  # type: ignore[arg-type]
    assert requests.abort(core, "a") is futures["a"] and core.aborted == ["a-core"]  # type: ignore[arg-type]
    assert requests.abort(core, "a") is None and not requests  # type: ignore[arg-type]
    assert list(requests.step(core)) == []  # type: ignore[arg-type]


def test_a_request_that_ends_wrongly_leaves_nobody_waiting() -> None:
    core = Core([sampled("a", 1, FinishReason.LENGTH), sampled("b", 2, FinishReason.ERROR), sampled("c", 3)])
    requests, futures = running(core, "a", "b", "c")
    ended = []
    with pytest.raises(RuntimeError, match="request b ended with 'error'"):
        for pair in requests.step(core):  # type: ignore[arg-type]
            ended.append(pair)
    assert [future for future, _ in ended] == [futures["a"]]
    assert requests.drain() == [futures["b"], futures["c"]]
