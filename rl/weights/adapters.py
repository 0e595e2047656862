"""LoRA adapters as weights: the names and tensors of an adapter, and the weights that it makes when it is merged.

An engine's layer with an adapter is PEFT's. `q_proj.base_layer.weight` is the frozen weight; a checkpoint knows it as
`q_proj.weight`. `q_proj.lora_A.default` and `lora_B.default` are trained, and `lora_magnitude_vector.default`
of DoRA. An adapter's own file has these, under the names that PEFT gives them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

ADAPTER = "default"
"""PEFT's name of the one adapter."""
PREFIX = "base_model.model."
"""The beginning of every name in an adapter's file."""
_BASE = ".base_layer."


def checkpoint_name(engine_name: str) -> str:
    """The name of a frozen weight without PEFT's layer around it."""
    return engine_name.replace(_BASE, ".")


def adapter_name(engine_name: str) -> str | None:
    """The name of an adapter's parameter in an adapter's file; None for a parameter that belongs to no adapter."""
    if ".lora_" not in engine_name:
        return None
    name = PREFIX + engine_name.replace(f".{ADAPTER}", "")
    return name.removesuffix(".weight") if ".lora_magnitude_vector" in name else name


def adapted_layers(module: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The layers with an adapter, by the engine's name of their frozen weight."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield f"{name}{_BASE}weight", layer


def own_parameters(layer: LoraLayer) -> Sequence[nn.Parameter]:
    """The adapter's parameters in one layer."""
    return [parameter for name, parameter in layer.named_parameters() if name.startswith("lora_")]


def merged(layer: LoraLayer, weight: Tensor) -> Tensor:
    """A new tensor: the layer's frozen weight with the adapter added, as PEFT's `merge` computes it. The weight and the
    adapter's parameters must be whole."""
    variant = layer.lora_variant.get(ADAPTER)
    if variant is not None:  # DoRA
        changed: Tensor = variant.merge_safe(layer, ADAPTER, weight.detach().clone())
        return changed.detach()
    delta: Tensor = layer.get_delta_weight(ADAPTER)
    return weight.detach() + delta.detach().to(weight.dtype)
