"""LoRA adapters in the policy: which layers get one, and the policy without them.

PEFT makes the layers and computes with them. Everything else of the model is frozen: it gets no gradient, no optimizer
state and no place in a checkpoint. With the adapters off the same model is the policy that training began with, so a
reference policy needs no second copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import deepspeed
import peft
from deepspeed.runtime.engine import DeepSpeedEngine
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from rewards.errors import listed
from rewards.extension import nearest
from rl.learner.config import LoraConfig
from rl.learner.model import seeded, stay
from rl.weights.adapters import ADAPTER, adapted_layers, own_parameters

ROUTERS = ("gate", "router")
"""What models call the layer that chooses experts."""


def add_adapters(
    model: PreTrainedModel, lora: LoraConfig, seed: int, place: Callable[[nn.Parameter], None] | None
) -> None:
    """Put adapters around the layers that `lora.targets` names, with the same initial values on every rank, and freeze
    the rest of the model.

    Args:
        place: called with every parameter of an adapter, as in `load_model`.

    Raises:
        ValueError: a target names no layer that can have an adapter. The message lists the nearest names.
    """
    targets = matching(linear_layers(model), lora.targets)
    holder = _nameless(model)
    with seeded(seed):
        # DoRA begins with the norms of the weights, each of which must be whole for that.
        for some in [[name] for name in targets] if lora.dora else [targets]:
            weights = [model.get_submodule(name).weight for name in some] if lora.dora else []
            with deepspeed.zero.GatheredParameters(weights) if weights else nullcontext():
                peft.inject_adapter_in_model(peft_config(lora, some), holder, adapter_name=ADAPTER)
    model.get_output_embeddings().requires_grad_(False)
    for _, layer in adapted_layers(model):
        if lora.dora and place is not None:
            _gather_with(layer)
        for parameter in own_parameters(layer):
            (place or stay)(parameter)


def _nameless(model: PreTrainedModel) -> nn.Module:
    """The decoder under the names that it has in the model, in a module that does not say which model it is.

    In models with experts PEFT 0.21 takes `gate_proj`, `up_proj` and `down_proj` for the routed experts, also where
    shared experts or dense layers are meant.
    """
    holder = nn.Module()
    holder.add_module(model.base_model_prefix, model.base_model)
    return holder


def peft_config(lora: LoraConfig, targets: Sequence[str]) -> peft.LoraConfig:
    """The configuration in PEFT's terms, for an adapter around the layers `targets`."""
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The names of the layers that can have an adapter: all linear ones but the head."""
    head = model.get_output_embeddings()
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head]


def matching(layers: Sequence[str], targets: Sequence[str] | None) -> list[str]:
    """The layers that targets name; without targets, all but routers.

    Raises:
        ValueError: a target matches none.
    """
    if targets is None:
        return [name for name in layers if name.rpartition(".")[2] not in ROUTERS]
    chosen = {target: [name for name in layers if _names(target, name)] for target in targets}
    absent = [target for target, found in chosen.items() if not found]
    if absent:
        leaves = sorted({name.rpartition(".")[2] for name in layers})
        hints = "".join(nearest(target, leaves) for target in absent)
        raise ValueError(
            f"lora.targets: the model has no linear layer {listed(absent)}{hints or '.'} Its layers are "
            f"{listed(leaves)}; routed experts and the head cannot have adapters"
        )
    return [name for name in layers if any(name in found for found in chosen.values())]


def _names(target: str, layer: str) -> bool:
    return layer == target or layer.endswith(f".{target}")


def exported_config(module: nn.Module, lora: LoraConfig, origin: str) -> peft.LoraConfig:
    """The configuration in an adapter's directory. Layers are named by their last part where that names no others."""
    adapted = {name.removesuffix(".base_layer.weight") for name, _ in adapted_layers(module)}
    plain = {n.removesuffix(".base_layer") for n, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    layers = [name for name in plain if ".lora_" not in name]
    leaves = sorted({name.rpartition(".")[2] for name in adapted})
    config = peft_config(lora, leaves if {*matching(layers, leaves)} == adapted else sorted(adapted))
    config.base_model_name_or_path, config.inference_mode = origin, True
    return config


def describe(module: nn.Module) -> str:
    """What the adapters are, in words: the layers that have one, and how many parameters are trained."""
    layers = Counter(name.removesuffix(".base_layer.weight").rpartition(".")[2] for name, _ in adapted_layers(module))
    trained = sum(_elements(p) for _, layer in adapted_layers(module) for p in own_parameters(layer))
    everything = sum(_elements(p) for p in module.parameters())
    where = ", ".join(f"{leaf} ({count})" for leaf, count in sorted(layers.items()))
    return f"{trained:,} of {everything:,} parameters are trained, in {where}"


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The policy as it was before training began."""
    layers = [layer for _, layer in adapted_layers(module)]
    # PEFT's own switch would also freeze the adapters' parameters, on which DeepSpeed's hooks lie.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def save_only_trained(module: nn.Module) -> None:
    """Leave frozen parameters out of a module's state. DeepSpeed does so, but for second names (a tied head's)."""

    def leave_out(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                state.pop(name, None)

    module.register_state_dict_post_hook(leave_out)


@contextmanager
def experts_frozen() -> Iterator[None]:
    """Let DeepSpeed 0.19 build and save an engine whose experts are all frozen.

    With experts in the model its stage 2 wants some to train, its stage 3 cannot save frozen ones, and its stage 0
    would save them. All ranks train the same parameters, so the engine may take the model for one without experts.
    """
    configure = DeepSpeedEngine._configure_optimizer

    def without_experts(engine: DeepSpeedEngine, *arguments: Any) -> None:
        engine.has_moe_layers = False
        configure(engine, *arguments)

    DeepSpeedEngine._configure_optimizer = without_experts
    try:
        yield
    finally:
        DeepSpeedEngine._configure_optimizer = configure


def _gather_with(layer: LoraLayer) -> None:
    """Make ZeRO-3 gather the weights of a layer's parts together with the layer: DoRA reads them without calling the
    parts."""
    for part in (layer.base_layer, layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
        deepspeed.zero.register_external_parameter(layer, part.weight)


def _elements(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
