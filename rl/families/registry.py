"""The model families by name, and the family of a given model. A new one is a file in this folder and a line here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewards.extension import Entry, Registry, make
from rl.families.config import FamilySettings
from rl.families.family import Family

FAMILIES: Registry = {
    "glm4_moe": Entry("rl.families.glm4_moe:Glm4Moe"),
    "qwen3_moe": Entry("rl.families.qwen3_moe:Qwen3Moe"),
    "qwen3": Entry("rl.families.qwen3:Qwen3"),
    "gpt_oss": Entry("rl.families.gpt_oss:GptOss"),
    "dense": Entry("rl.families.dense:Dense"),
}
DENSE = {"dense", "qwen3"}
"""The families whose models have no experts."""
_EXPERT_COUNT_KEYS = ("n_routed_experts", "num_experts", "num_local_experts")
"""The keys under which config.json files give the number of routed experts."""


def family_of(model_config: Mapping[str, Any], settings: FamilySettings | None = None) -> Family:
    """The family that `settings` name; without settings, the family of the config's model_type, else `dense`.

    Raises:
        ValueError: no family has this model_type and the model has experts, or `settings` name no family.
    """
    if settings is not None:
        return _made(settings)
    model_type = model_config.get("model_type")
    for family in map(_made, map(_settings, FAMILIES)):
        if model_type in family.model_types:
            return family
    if any(model_config.get(key) for key in _EXPERT_COUNT_KEYS):
        known = sorted(kind for name in FAMILIES.keys() - DENSE for kind in _made(_settings(name)).model_types)
        raise ValueError(
            f"model type {model_type!r} has experts that Sluice cannot split; supported are {', '.join(known)}, and a "
            "family of your own by model.family"
        )
    return _made(_settings("dense"))


def local_config(model: str | Path) -> dict[str, Any] | None:
    """The config.json of a model directory; None if there is none or it cannot be read."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def refuse_quantised(config: Mapping[str, Any]) -> None:
    """Raise ValueError if a config.json says that the checkpoint is quantised."""
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"the checkpoint is quantised ({method}), and training needs plain weights: dequantise it. QLoRA, an "
            "adapter over such a base, is refused until engine and trainer were seen to compute with the same base"
        )


def published_config(model: str) -> Mapping[str, Any] | None:
    """The shapes of a published model by its Hugging Face name, under the names of its config.json; None if no family
    lists it."""
    return _published().get(model, (None, None))[1]


def known_family(model: str, settings: FamilySettings | None) -> Family | None:
    """The family of a model, found without a download: from the settings, a local config.json or the published name.
    None if these do not tell.

    Raises:
        ValueError: as `family_of`.
    """
    config = local_config(model)
    if settings is not None or config is not None:
        return family_of(config or {}, settings)
    return _published().get(model, (None, None))[0]


def _published() -> dict[str, tuple[Family, Mapping[str, Any]]]:
    families = [_made(_settings(name)) for name in FAMILIES]
    return {model: (family, config) for family in families for model, config in family.published.items()}


def _settings(name: str) -> FamilySettings:
    return FamilySettings(name=name)


def _made(settings: FamilySettings) -> Family:
    family: Family = make(FAMILIES, settings.name, settings)
    return family
