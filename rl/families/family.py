"""The interface of a model family. The learner, the weight stream, checkpoints, recipes and `plan` need nothing else.

There are three kinds of tensor names. A *model's* names are transformers' (`PolicyModel` keeps them); a layer's experts
may be fused into one tensor. An *engine's* names are DeepSpeed's, where AutoEP replaces a MoE block by its own. A
*checkpoint's* names are those of the published files; vLLM and exports use them, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rl.families.config import FamilySettings

if TYPE_CHECKING:
    from torch import Tensor


class Family:
    """The base class of families. By itself it is a dense decoder, whose tensors have the same names everywhere."""

    model_types: tuple[str, ...] = ()
    """The model_type values in config.json that belong to this family."""
    renderer: str | None = None
    """The chat format of the family's published chat models."""
    autoep_preset: str | None = None
    """The preset with which DeepSpeed's AutoEP splits the family's experts; None: there are no experts to split."""
    float32_router: bool = False
    """Whether the family's reference code computes router logits in float32 for parameters of any type."""
    published: Mapping[str, Mapping[str, Any]] = {}
    """By the Hugging Face name of published models what their config.json says of shapes; it is used when the file is
    not on this machine."""

    def __init__(self, settings: FamilySettings) -> None:
        self.settings = settings

    def experts(self, model_config: Mapping[str, Any]) -> int:
        """The number of routed experts in a MoE layer; 0 for a dense model."""
        return 0

    def ignored(self, model_config: Mapping[str, Any]) -> list[str]:
        """Regular expressions of names in a checkpoint that the model leaves out on purpose."""
        return [r"rotary_emb\.inv_freq$"]  # found in older checkpoints; computed from the config instead

    def kept(self, model_config: Mapping[str, Any]) -> list[str]:
        """Regular expressions of names in a checkpoint that the trainer leaves out and an export takes over. They are
        `ignored`, too."""
        return []

    def stored_parts(self, model_name: str, full: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint's names for a model's tensor, each with the view of `full` that it fills."""
        yield model_name, full

    def checkpoint_name(self, engine_name: str) -> str:
        """The checkpoint's name for an engine's tensor that holds no experts."""
        return engine_name

    def expert_pattern(self, engine_name: str) -> str | None:
        """The checkpoint's names for an engine's tensor [experts, …], with {} for the index of the expert; None for any
        other tensor."""
        return None

    def exported_config(self, model_config: dict[str, Any]) -> dict[str, Any]:
        """The config.json for an export that holds exactly the tensors of the trained model."""
        return model_config

    def exported_config_with_kept(self, model_config: dict[str, Any]) -> dict[str, Any]:
        """The config.json for an export that also holds the `kept` tensors."""
        return self.exported_config(model_config)
