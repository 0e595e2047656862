"""How tensors in checkpoint format get into a vLLM model while a reload watches.

In vLLM 0.32, GPT-OSS writes a layer's experts and sinks past the loaders that a reload watches: its `load_weights`
copies them straight into the parameters, which have no storage during a reload, so the values are lost. Here the
experts get the names that vLLM uses for one expert alone, and sinks are handed to their parameter's loader.
tests/rollout/engine/test_models.py fails when this is no longer needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank

_EXPERTS = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<matrix>(gate_up|down)_proj(_bias)?)")
_SINKS = re.compile(r"(?P<layer>.*)\.self_attn\.sinks")


class LoadableModel(Protocol):
    """A vLLM model: an nn.Module that takes checkpoint tensors and returns the names of the weights they filled."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def load_watched(model: LoadableModel, tensors: Iterable[tuple[str, Tensor]]) -> set[str]:
    """As `model.load_weights`, so that a reload sees every tensor. Models other than GPT-OSS are not changed."""
    own = type(model).__name__ == "GptOssForCausalLM"
    return _load(model, tensors) if own else model.load_weights(tensors)


def _load(model: LoadableModel, tensors: Iterable[tuple[str, Tensor]]) -> set[str]:
    parameters: dict[str, Any] = dict(model.named_parameters())
    filled: set[str] = set()
    others: list[tuple[str, Tensor]] = []
    for name, tensor in tensors:
        if (found := _SINKS.fullmatch(name)) and (sinks := f"{found['layer']}.attn.sinks") in parameters:
            own = len(parameters[sinks])
            parameters[sinks].weight_loader(
                parameters[sinks], tensor.narrow(0, get_tensor_model_parallel_rank() * own, own)
            )
            filled.add(sinks)
        else:
            others += _one_by_one(name, tensor)
    return filled | model.load_weights(others)


def _one_by_one(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    experts = _EXPERTS.fullmatch(name)
    if experts is None:
        yield name, tensor
        return
    for number, expert in enumerate(tensor):
        yield f"{experts['experts']}.{number}.{experts['matrix']}", expert
