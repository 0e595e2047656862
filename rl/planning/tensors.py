"""The tensors of a recipe's policy, on PyTorch's meta device, where they have shapes and no memory.

It knows which of them an adapter trains, which of them AutoEP divides among an expert-parallel group, and how many
elements of each a trainer rank holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl.config import Recipe
from rl.families.registry import family_of, published_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter: its name, its number of elements, whether it is trained, and whether AutoEP divides it."""

    name: str
    elements: int
    trained: bool = True
    expert: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """A policy's parameters, each once (a tied head is the embedding), and the sizes from which memory follows."""

    parameters: Sequence[Parameter]
    layers: int
    hidden: int
    vocabulary: int
    model: PreTrainedModel

    @property
    def base(self) -> int:
        """The elements of the model, without those of an adapter."""
        return sum(one.elements for one in self.parameters if ".lora_" not in one.name)

    @property
    def trained(self) -> int:
        return sum(one.elements for one in self.parameters if one.trained)

    def of_layer(self, number: int) -> list[Parameter]:
        return [one for one in self.parameters if f".layers.{number}." in one.name]


def held(parameters: Iterable[Parameter], *, ranks: int, expert_parallel: int, divided: bool) -> int:
    """The elements that the fullest trainer rank holds of these parameters.

    An expert-parallel group of ranks has the experts once. `divided` says that ZeRO divides every parameter among the
    ranks that would hold the same of it, rounded up for each (Rajbhandari et al. 2020, arXiv:1910.02054).
    """
    total = 0
    for one in parameters:
        own = -(-one.elements // expert_parallel) if one.expert else one.elements
        copies = ranks // expert_parallel if one.expert else ranks
        total += -(-own // copies) if divided else own
    return total


def tensors_of(recipe: Recipe) -> Tensors | None:
    """The tensors of a recipe's policy; None if neither its config.json is here nor a family knows its shapes.

    Raises:
        ValueError: a target of `lora` is not in the model.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(recipe.model.path, local_files_only=True)
    except (OSError, ValueError):
        published = published_config(recipe.model.path)
        return None if published is None else _on_meta(recipe, AutoConfig.for_model(**published))
    return _on_meta(recipe, config)


def _on_meta(recipe: Recipe, config: Any) -> Tensors:
    import torch
    from transformers import AutoModelForCausalLM

    architecture = config.to_dict()
    family = family_of(architecture, recipe.model.family)
    divides = family.experts(architecture) > 0 and family.autoep_preset is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, recipe.model.dtype))
        if recipe.lora is not None:
            from rl.learner.lora import add_adapters

            # DoRA's vectors of norms, which need values, are left out: a number for each output of a layer.
            add_adapters(model, recipe.lora.model_copy(update={"dora": False}), 0, None)
    return Tensors(
        parameters=[
            Parameter(
                name=name,
                elements=parameter.numel(),
                trained=parameter.requires_grad,
                expert=divides and ".experts." in name,
            )
            for name, parameter in model.named_parameters()
        ],
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        model=model,
    )
