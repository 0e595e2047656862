"""GLM-4.5 and GLM-4.5-Air: sigmoid routing with a correction bias, shared experts, QK-norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.families.experts import MixtureOfExperts
from rl.families.family import ModelSize

GLM_45 = ModelSize(parameters=355 * 10**9, layers=92, hidden=5120)
GLM_45_AIR = ModelSize(parameters=106 * 10**9, layers=46, hidden=4096)


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
    # From the GLM-4.5 report (arXiv:2508.06471, table 1), without the multi-token-prediction layer.
    published: Mapping[str, ModelSize] = {
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
