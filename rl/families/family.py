"""What the framework knows of a model family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """`hidden` is the width of what one layer hands to the next, for each token."""

    parameters: int
    layers: int
    hidden: int


AUTOEP_PRESETS = {"glm4_moe": "deepseek_v3", "qwen3_moe": "qwen3_moe"}
"""Model types whose experts AutoEP is tested to split, with the preset that fits. GLM-4.5 has none of its own, but
its block is DeepSeek-V3's: sigmoid scores, correction bias, group-limited top-k, shared experts."""

EXPERT_COUNT_KEYS = ("n_routed_experts", "num_experts", "num_local_experts")


def is_moe(model_config: dict[str, Any]) -> bool:
    """Whether a config.json describes routed experts."""
    return any(model_config.get(key) for key in EXPERT_COUNT_KEYS)
