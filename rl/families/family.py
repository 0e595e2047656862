"""What the framework asks of a model family. The learner, the weight stream, checkpoints and `plan` ask nothing else.

Three kinds of names meet here. A *model's* names are transformers' (`PolicyModel` keeps them), where a layer's experts
may be fused into one tensor. An *engine's* names are DeepSpeed's: AutoEP replaces a MoE block by one of its own. A
*checkpoint's* names are those of the published files; vLLM and exports speak them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl.families.config import FamilySettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """`hidden` is the width of what one layer hands to the next, for each token."""

    parameters: int
    layers: int
    hidden: int


class Family:
    """A dense decoder, whose names are the same everywhere; meant to be derived from. Made with its settings."""

    model_types: tuple[str, ...] = ()
    """The model_type values of a config.json that mean this family."""
    renderer: str | None = None
    """The chat format of the family's published chat models."""
    autoep_preset: str | None = None
    """The preset by which DeepSpeed's AutoEP splits the family's experts; None: it has none to split."""
    float32_router: bool = False
    """Whether the family's reference code computes router logits in float32 whatever the parameters' type."""
    published: Mapping[str, ModelSize] = {}
    """Sizes of published models, used where a model's config.json is not on this machine."""

    def __init__(self, settings: FamilySettings) -> None:
        self.settings = settings

    def experts(self, model_config: Mapping[str, Any]) -> int:
        """Routed experts of a MoE layer; 0 for a dense model."""
        return 0

    def ignored(self, model_config: Mapping[str, Any]) -> list[str]:
        """Regular expressions of names in a checkpoint that the model leaves out on purpose."""
        return [r"rotary_emb\.inv_freq$"]  # in older checkpoints; the frequencies follow from the config

    def stored_parts(self, model_name: str, full: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint's names for a model's tensor, each with the view of it that it fills."""
        yield model_name, full

    def checkpoint_name(self, engine_name: str) -> str:
        """The checkpoint's name for an engine's tensor that is no expert's."""
        return engine_name

    def expert_pattern(self, engine_name: str) -> str | None:
        """For an engine's tensor [experts, …], the checkpoint's names with {} for the expert's number; None for any
        other tensor."""
        return None

    def exported_config(self, model_config: dict[str, Any]) -> dict[str, Any]:
        """The config.json of an export, which holds the tensors of the model and no others."""
        return model_config
