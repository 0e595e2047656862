"""Qwen3's models with routed experts: softmax routing, no shared experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.families.experts import MixtureOfExperts
from rl.families.family import ModelSize


class Qwen3Moe(MixtureOfExperts):
    """The family `qwen3_moe`."""

    model_types = ("qwen3_moe",)
    autoep_preset = "qwen3_moe"
    router_names: Mapping[str, str] = {".mlp.router.gate.weight": ".mlp.gate.weight"}
    # From the models' cards; hidden sizes from their configs.
    published: Mapping[str, ModelSize] = {
        "Qwen/Qwen3-30B-A3B": ModelSize(parameters=30500 * 10**6, layers=48, hidden=2048),
        "Qwen/Qwen3-235B-A22B": ModelSize(parameters=235 * 10**9, layers=94, hidden=4096),
    }

    def experts(self, model_config: Mapping[str, Any]) -> int:
        # Published files use num_experts; files that transformers 5 saves use num_local_experts.
        return int(model_config.get("num_experts") or model_config.get("num_local_experts") or 0)
