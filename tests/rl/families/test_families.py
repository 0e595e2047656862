"""Model families: which one a config belongs to, and the tensor names that each maps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from rl.families.config import FamilySettings
from rl.families.glm4_moe import GLM_45, GLM_45_AIR
from rl.families.registry import family_of, known_family, published_config

GLM = {"model_type": "glm4_moe", "n_routed_experts": 8, "num_hidden_layers": 4, "num_nextn_predict_layers": 2}
QWEN = {"model_type": "qwen3_moe", "num_experts": 4}
MOE = pytest.mark.parametrize("config", [GLM, QWEN], ids=["glm4_moe", "qwen3_moe"])


@pytest.mark.parametrize(
    ("config", "name", "experts"),
    [
        (GLM, "glm4_moe", 8),
        ({"model_type": "glm4_moe"}, "glm4_moe", 0),
        (QWEN, "qwen3_moe", 4),
        ({"model_type": "qwen3_moe", "num_local_experts": 4}, "qwen3_moe", 4),
        ({"model_type": "llama"}, "dense", 0),
        ({"model_type": "qwen3"}, "qwen3", 0),
        ({"model_type": "mixtral", "num_local_experts": 0}, "dense", 0),
        ({}, "dense", 0),
    ],
)
def test_a_config_belongs_to_the_family_of_its_model_type(config: dict, name: str, experts: int) -> None:
    family = family_of(config)
    assert (family.settings.name, family.experts(config)) == (name, experts)


@pytest.mark.parametrize("key", ["n_routed_experts", "num_experts", "num_local_experts"])
def test_experts_of_an_unknown_model_type_are_refused_unless_a_family_is_named(key: str) -> None:
    config = {"model_type": "mixtral", key: 8}
    with pytest.raises(
        ValueError, match=r"'mixtral' has experts .* supported are glm4_moe, gpt_oss, qwen3_moe, .*model.family"
    ):
        family_of(config)
    assert family_of(config, FamilySettings(name="dense")).experts(config) == 0


def test_a_family_that_does_not_exist_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'qwen3_moe'"):
        family_of(QWEN, FamilySettings(name="qwen3moe"))


def test_a_family_is_known_from_the_settings_the_local_config_or_the_published_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    for model, settings, name in (
        (str(tmp_path), None, "qwen3_moe"),
        (str(tmp_path), FamilySettings(name="dense"), "dense"),
        ("zai-org/GLM-4.5-Air", None, "glm4_moe"),
        ("someone/unpublished", FamilySettings(name="glm4_moe"), "glm4_moe"),
    ):
        family = known_family(model, settings)
        assert family is not None and family.settings.name == name
    assert known_family("someone/unpublished", None) is None
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        assert known_family(str(tmp_path), None) is None


def test_published_models_are_known_by_both_of_their_names() -> None:
    for name in ("zai-org/GLM-4.5", "zai-org/GLM-4.5-Base"):
        assert published_config(name) == GLM_45
    for name in ("zai-org/GLM-4.5-Air", "zai-org/GLM-4.5-Air-Base"):
        assert published_config(name) == GLM_45_AIR
    assert published_config("zai-org/GLM-5") is None


@MOE
def test_fused_experts_are_stored_one_by_one(config: dict) -> None:
    experts, width, hidden = 3, 4, 5
    gate_up = torch.arange(float(experts * 2 * width * hidden)).view(experts, 2 * width, hidden)
    down = torch.arange(float(experts * hidden * width)).view(experts, hidden, width)
    prefix, family = "model.layers.1.mlp.experts", family_of(config)
    parts = dict(family.stored_parts(f"{prefix}.gate_up_proj", gate_up))
    parts |= dict(family.stored_parts(f"{prefix}.down_proj", down))
    assert len(parts) == 3 * experts
    for i in range(experts):
        assert parts[f"{prefix}.{i}.gate_proj.weight"].equal(gate_up[i, :width])
        assert parts[f"{prefix}.{i}.up_proj.weight"].equal(gate_up[i, width:])
        assert parts[f"{prefix}.{i}.down_proj.weight"].equal(down[i])
    parts[f"{prefix}.2.up_proj.weight"].zero_()
    assert not gate_up[2, width:].any(), "the parts are views, so that reading fills the whole"


@MOE
def test_other_tensors_are_stored_whole(config: dict) -> None:
    full = torch.zeros(2)
    for name in ("model.layers.0.mlp.gate_up_proj", "model.norm.weight", "model.layers.0.mlp.shared_experts.down_proj"):
        assert [(n, t is full) for n, t in family_of(config).stored_parts(name, full)] == [(name, True)]


@MOE
def test_autoeps_expert_tensors_have_a_checkpoint_name_for_each_expert(config: dict) -> None:
    family, prefix = family_of(config), "model.layers.1.mlp.experts"
    for matrix, projection in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        assert family.expert_pattern(f"{prefix}.{matrix}") == f"{prefix}.{{}}.{projection}.weight"
    for name in (f"{prefix}.w4", "model.layers.1.mlp.shared_experts.w1", "model.norm.weight"):
        assert family.expert_pattern(name) is None


def test_routers_have_the_checkpoints_names() -> None:
    glm, qwen = family_of(GLM), family_of(QWEN)
    gate, bias = "model.layers.1.mlp.router.gate.weight", "model.layers.1.mlp.router.e_score_correction_bias"
    assert glm.checkpoint_name(gate) == qwen.checkpoint_name(gate) == "model.layers.1.mlp.gate.weight"
    assert glm.checkpoint_name(bias) == "model.layers.1.mlp.gate.e_score_correction_bias"
    for family in (glm, qwen):
        assert family.checkpoint_name("model.norm.weight") == "model.norm.weight"


def test_a_dense_models_tensors_have_the_same_names_everywhere() -> None:
    family, full = family_of({"model_type": "llama"}), torch.zeros(2)
    name = "model.layers.0.mlp.experts.w1"
    assert family.checkpoint_name(name) == name and family.expert_pattern(name) is None
    assert list(family.stored_parts(name, full)) == [(name, full)]
    assert family.autoep_preset is None and not family.float32_router


@pytest.mark.parametrize(
    ("config", "name", "ignored"),
    [
        (GLM, "model.layers.3.mlp.gate.weight", False),
        (GLM, "model.layers.4.eh_proj.weight", True),
        (GLM, "model.layers.5.mlp.gate.weight", True),
        (GLM, "model.layers.6.mlp.gate.weight", False),
        (GLM, "model.layers.40.mlp.gate.weight", False),
        (GLM | {"num_nextn_predict_layers": None}, "model.layers.4.eh_proj.weight", False),
        (GLM, "model.layers.0.self_attn.rotary_emb.inv_freq", True),
        (QWEN, "model.layers.0.self_attn.rotary_emb.inv_freq", True),
        (QWEN, "model.norm.weight", False),
    ],
)
def test_what_a_checkpoint_may_hold_beside_the_model(config: dict, name: str, ignored: bool) -> None:
    assert any(re.search(pattern, name) for pattern in family_of(config).ignored(config)) == ignored


def test_an_exported_config_promises_no_layer_that_is_not_exported() -> None:
    assert family_of(GLM).exported_config(GLM) == GLM | {"num_nextn_predict_layers": 0}
    assert GLM["num_nextn_predict_layers"] == 2
    assert family_of(QWEN).exported_config(QWEN) == QWEN
