"""The settings of an engine's adapters, and vLLM's arguments for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What decides the factor of an adapter's output: alpha / rank, or alpha / sqrt(rank) with rslora."""

    rank: int
    alpha: float
    rslora: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """The adapters of an engine: what they are like, and how many it holds at once. `targets` are the last parts of the
    names of the layers that have one; None: all linear layers but the head."""

    slots: int
    scale: Scale
    targets: tuple[str, ...] | None


def adapter_arguments(adapters: AdapterSettings, model_path: str) -> dict[str, Any]:
    """vLLM's EngineArgs. All adapters that the engine holds may be in one batch."""
    from vllm.config.lora import MaxLoRARanks

    return {
        "enable_lora": True,
        "max_loras": adapters.slots,
        "max_cpu_loras": adapters.slots,
        "max_lora_rank": min(rank for rank in get_args(MaxLoRARanks) if rank >= adapters.scale.rank),
        "lora_target_modules": list(adapters.targets or linear_layers(model_path)),
    }


def linear_layers(model_path: str) -> list[str]:
    """The last parts of the names of a model's linear layers, without its head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path))
    head = model.get_output_embeddings()
    layers = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and layer is not head]
    return sorted({name.rpartition(".")[2] for name in layers})
