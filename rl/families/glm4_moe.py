"""GLM-4.5 and GLM-4.5-Air: sigmoid routing with a correction bias, shared experts, QK-norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.families.experts import MixtureOfExperts

_BOTH: Mapping[str, Any] = {
    "model_type": "glm4_moe",
    "vocab_size": 151552,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_bias": True,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}
GLM_45: Mapping[str, Any] = {
    **_BOTH,
    "num_hidden_layers": 92,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "first_k_dense_replace": 3,
    "use_qk_norm": True,
}
"""352.8 billion parameters. The report's 355 (arXiv:2508.06471, table 1) have the multi-token-prediction layer."""
GLM_45_AIR: Mapping[str, Any] = {
    **_BOTH,
    "num_hidden_layers": 46,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "first_k_dense_replace": 1,
    "use_qk_norm": False,
}
"""106.9 billion parameters."""


class Glm4Moe(MixtureOfExperts):
    """The family `glm4_moe`."""

    model_types = ("glm4_moe",)
    renderer = "glm-4.5"
    # AutoEP has no preset for GLM-4.5, but its MoE block is DeepSeek-V3's: sigmoid scores, correction bias,
    # group-limited top-k, shared experts.
    autoep_preset = "deepseek_v3"
    float32_router = True
    router_names: Mapping[str, str] = {
        ".mlp.router.gate.weight": ".mlp.gate.weight",
        ".mlp.router.e_score_correction_bias": ".mlp.gate.e_score_correction_bias",
    }
    published: Mapping[str, Mapping[str, Any]] = {
        "zai-org/GLM-4.5": GLM_45,
        "zai-org/GLM-4.5-Base": GLM_45,
        "zai-org/GLM-4.5-Air": GLM_45_AIR,
        "zai-org/GLM-4.5-Air-Base": GLM_45_AIR,
    }

    def experts(self, model_config: Mapping[str, Any]) -> int:
        return int(model_config.get("n_routed_experts") or 0)

    def ignored(self, model_config: Mapping[str, Any]) -> list[str]:
        return [*super().ignored(model_config), *self.kept(model_config)]

    def kept(self, model_config: Mapping[str, Any]) -> list[str]:
        """The multi-token-prediction layers, which follow the model's own layers."""
        layers = model_config["num_hidden_layers"]
        extra = range(layers, layers + (model_config.get("num_nextn_predict_layers") or 0))
        return [rf"^model\.layers\.{layer}\." for layer in extra]

    def exported_config(self, model_config: dict[str, Any]) -> dict[str, Any]:
        """The config without multi-token-prediction layers, which are not trained."""
        return model_config | {"num_nextn_predict_layers": 0}

    def exported_config_with_kept(self, model_config: dict[str, Any]) -> dict[str, Any]:
        kept = {"num_nextn_predict_layers": model_config["num_nextn_predict_layers"]}
        return self.exported_config(model_config) | kept
