"""Models of two sizes, as directories with a config.json: weights are random, and nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

TINY: dict[str, object] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "tie_word_embeddings": False,
}
"""Small enough to count by hand."""
SMOLLM2: dict[str, object] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's sizes."""
MOE: dict[str, object] = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 640,
    "num_hidden_layers": 11,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts_per_tok": 2,
    "use_qk_norm": True,
    "n_group": 1,
    "topk_group": 1,
    "tie_word_embeddings": False,
}
"""A GLM-4.5-style mixture of experts of 209 M parameters."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the directory of `smollm2` or `moe`."""
    from transformers import Glm4MoeConfig, LlamaConfig

    folder = tmp_path_factory.mktemp("models")
    for name, kind, sizes, architecture in (
        ("smollm2", LlamaConfig, SMOLLM2, "LlamaForCausalLM"),
        ("moe", Glm4MoeConfig, MOE, "Glm4MoeForCausalLM"),
    ):
        kind(**sizes, max_position_embeddings=32768, architectures=[architecture]).save_pretrained(folder / name)
    return folder.joinpath


@pytest.fixture
def tiny_llama(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    return tmp_path
