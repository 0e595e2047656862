"""How a recipe's adapter gets to the engines: alone, or merged into the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl.config import Recipe
from rl.families.registry import family_of, local_config, published_config


def pushes_adapter(recipe: Recipe) -> bool:
    """Whether engines get the adapter alone (`lora.push`). vLLM computes with neither DoRA nor, on CPU, adapters of
    models with experts, and on GPUs nobody has compared the latter with the trainer's."""
    if recipe.lora is None:
        return False
    if recipe.lora.push != "auto":
        return recipe.lora.push == "adapter"
    return not recipe.lora.dora and not has_experts(recipe)


def has_experts(recipe: Recipe) -> bool:
    """Whether the recipe's model has routed experts. Asks the hub if its config.json is not on this machine and no
    family knows the model."""
    model = recipe.model.path
    config = local_config(model) or published_config(model) or _hub_config(model)
    return family_of(config, recipe.model.family).experts(config) > 0


def _hub_config(model: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    config: dict[str, Any] = json.loads(Path(hf_hub_download(model, "config.json")).read_text(encoding="utf-8"))
    return config
