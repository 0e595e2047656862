"""Qwen3's models with routed experts: softmax routing, no shared experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.families.experts import MixtureOfExperts


class Qwen3Moe(MixtureOfExperts):
    """The family `qwen3_moe`."""

    model_types = ("qwen3_moe",)
    autoep_preset = "qwen3_moe"
    router_names: Mapping[str, str] = {".mlp.router.gate.weight": ".mlp.gate.weight"}

    def experts(self, model_config: Mapping[str, Any]) -> int:
        # Published files use num_experts; files that transformers 5 saves use num_local_experts.
        return int(model_config.get("num_experts") or model_config.get("num_local_experts") or 0)
