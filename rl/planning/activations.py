"""The bytes that a micro-batch's forward keeps for its backward, found by running the model's own decoder on PyTorch's
meta device.

What autograd saves in each layer is added up, every storage once. Attention is taken as a fused kernel, which saves its
inputs and its output. Routed experts are not run, since their shapes depend on the routing: with balanced routing each
chosen expert of a token saves its input, its output, and four vectors of its own width (gate, its activation, up, their
product), as `deepspeed.moe.ep_experts` computes them.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

from rl.planning.tensors import Tensors

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_FUSED = "sluice_plan"
"""The name of the attention function for planning, in transformers' table of them."""
_EXPERTS = ".experts"
"""The last part of the name of a layer's routed experts."""


def saved_by_layer(tensors: Tensors, tokens: int) -> list[int] | None:
    """The bytes that each layer keeps for a sequence of so many tokens. None if the model computes
    something that the meta device cannot."""
    try:
        return _run(tensors.model, tokens)
    except Exception:
        return None


def _run(model: PreTrainedModel, tokens: int) -> list[int]:
    import torch
    from transformers import AttentionInterface

    AttentionInterface.register(_FUSED, _fused())
    model.config._attn_implementation = _FUSED
    decoder = model.get_decoder()
    for module in (module for name, module in decoder.named_modules() if name.endswith(_EXPERTS)):
        module.forward = lambda hidden, *_, **__: torch.empty_like(hidden)
    saved = _Saved(model)
    for number, layer in enumerate(decoder.layers):
        layer.register_forward_pre_hook(partial(saved.enter, number))
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
        embedded = torch.empty(1, tokens, model.config.hidden_size, dtype=model.dtype, requires_grad=True) * 1
        decoder(inputs_embeds=embedded, use_cache=False)
    return [saved.bytes(number) + _of_experts(model, layer, tokens) for number, layer in enumerate(decoder.layers)]


class _Saved:
    """The storages that autograd saves in each layer, but those of the weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._layers: dict[int, dict[int, Tensor]] = defaultdict(dict)
        self._layer = -1

    def enter(self, layer: int, *_: Any) -> None:
        self._layer = layer

    def note(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._weights:
            self._layers[self._layer][_storage(tensor)] = tensor
        return tensor

    def bytes(self, layer: int) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._layers[layer].values())


def _of_experts(model: PreTrainedModel, layer: nn.Module, tokens: int) -> int:
    """The bytes that the routed experts of a layer keep."""
    if not any(name.endswith(_EXPERTS) for name, _ in layer.named_modules()):
        return 0
    config = model.config
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return int(tokens * config.num_experts_per_tok * (2 * config.hidden_size + 4 * width) * model.dtype.itemsize)


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _fused() -> Any:
    """An attention function without arithmetic that saves what a fused kernel saves."""
    import torch

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            output = query.new_empty((*query.shape[:3], value.shape[3]))
            ctx.save_for_backward(query, key, value, output)
            return output

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any) -> Any:
        return Fused.apply(query, key, value).transpose(1, 2), None

    return attention
