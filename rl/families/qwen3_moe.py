"""Qwen3's models with routed experts: softmax routing, no shared experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.families.experts import MixtureOfExperts


def _shapes(*, layers: int, hidden: int, width: int, heads: int, expert_width: int) -> Mapping[str, Any]:
    return {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": width,
        "moe_intermediate_size": expert_width,
        "num_attention_heads": heads,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "tie_word_embeddings": False,
    }


class Qwen3Moe(MixtureOfExperts):
    """The family `qwen3_moe`."""

    model_types = ("qwen3_moe",)
    autoep_preset = "qwen3_moe"
    router_names: Mapping[str, str] = {".mlp.router.gate.weight": ".mlp.gate.weight"}
    published: Mapping[str, Mapping[str, Any]] = {
        "Qwen/Qwen3-30B-A3B": _shapes(layers=48, hidden=2048, width=6144, heads=32, expert_width=768),
        "Qwen/Qwen3-235B-A22B": _shapes(layers=94, hidden=4096, width=12288, heads=64, expert_width=1536),
    }

    def experts(self, model_config: Mapping[str, Any]) -> int:
        # Published files use num_experts; files that transformers 5 saves use num_local_experts.
        return int(model_config.get("num_experts") or model_config.get("num_local_experts") or 0)
