"""The committed model: what it has of GLM-4.5, and what its tokenizer depends on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.models.make_tiny_glm4_moe import segments
from rl.verbs.plan import model_size
from rollout.envs.registry import ENVIRONMENTS

MODEL = Path(__file__).parents[2] / "recipes" / "models" / "tiny-glm4-moe"


def test_a_new_environment_leaves_the_committed_tokenizer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = segments()
    monkeypatch.setitem(ENVIRONMENTS, "another", object())
    assert segments() == before


def test_it_is_a_small_glm_45() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["Glm4MoeForCausalLM"]
    assert 0 < config["first_k_dense_replace"] < config["num_hidden_layers"], "dense layers first, then experts"
    assert config["n_shared_experts"] == 1 and 1 < config["num_experts_per_tok"] < config["n_routed_experts"]
    assert config["use_qk_norm"] and config["num_key_value_heads"] < config["num_attention_heads"]
    size = model_size(str(MODEL))
    assert size is not None and 1e6 <= size.parameters <= 3e6
