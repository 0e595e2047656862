"""Adapters in a vLLM worker: they arrive as tensors, and are put into slots beside each other.

vLLM loads adapters from a directory when a request names one. Here they are loaded from tensors before any request can
name them, so a request never waits for a file, and what was loaded is checked: vLLM leaves out what it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from rewards.errors import listed
from rollout.lora.arguments import Scale
from rollout.lora.names import adapter_id


def put(manager: Any, version: int, tensors: Mapping[str, Tensor], scale: Scale) -> None:
    """Load an adapter, under names and in shapes as in PEFT's files, into a free slot; again if it is loaded already.

    Args:
        manager: vLLM's WorkerLoRAManager.

    Raises:
        ValueError: vLLM has no layer for one of the tensors, or a pair is not whole.
    """
    slots = manager._adapter_manager
    model = slots.model
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    helper = PEFTHelper(r=scale.rank, lora_alpha=scale.alpha, target_modules=[], use_rslora=scale.rslora)
    helper.validate_legal(manager.lora_config)
    lora = LoRAModel.from_lora_tensors(
        lora_model_id=adapter_id(version),
        tensors=dict(tensors),
        peft_helper=helper,
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        model_vocab_size=manager.vocab_size,
        weights_mapper=None if mapper is None else mapper.get_rename_mapper(),
    )
    _check(lora.loras, known_layers(slots))
    slots.remove_adapter(lora.id)
    slots.add_adapter(lora)
    slots.activate_adapter(lora.id)


def drop(manager: Any, version: int) -> None:
    """Free an adapter's slot."""
    manager._adapter_manager.remove_adapter(adapter_id(version))


def known_layers(slots: Any) -> set[str]:
    """The layers for which vLLM takes an adapter, under the names of a checkpoint."""
    packed: Mapping[str, Sequence[str]] = slots.packed_modules
    return {part for name in slots.modules for part in packed.get(name, [name])}


def _check(loras: Mapping[str, Any], known: set[str]) -> None:
    unknown = loras.keys() - known
    if unknown:
        raise ValueError(f"vLLM has no adapters for the layers {listed(unknown)}; use lora.push=merged")
    halves = [name for name, pair in loras.items() if pair.lora_a is None or pair.lora_b is None]
    if halves:
        raise ValueError(f"the adapter's pair of tensors for {listed(halves)} is not whole")
