"""Models whose formulas the trainer has pass the check at start-up, and a model with another formula is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from rl.learner import selfcheck
from rl.learner.attention import Formula as Plain
from rl.learner.selfcheck import check_forward, small_copy

SIZES = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 16,
}  # fmt: skip
EXPERTS = {"num_experts": 32, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


def config(model_type: str, **keys: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **(SIZES | keys))


RIGHT = {
    "llama": config("llama"),
    "llama with biases": config("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama 3 rope": config(
        "llama",
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    ),
    "mistral": config("mistral", sliding_window=None),
    "mistral with a window": config("mistral", sliding_window=64),
    "qwen2": config("qwen2"),
    "qwen2 with windows": config("qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=3),
    "qwen3 with windows": config("qwen3", use_sliding_window=True, sliding_window=64, max_window_layers=1),
    "gemma": config("gemma"),
    "gemma 3": config("gemma3_text", sliding_window=64),
    "gemma 2": config("gemma2", sliding_window=64, attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
    "gemma 2 without bounds": config("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None),
    "gpt-oss": config("gpt_oss", num_local_experts=32, num_experts_per_tok=2, sliding_window=64, pad_token_id=0),
    "granite": config("granite", logits_scaling=8.0, embedding_multiplier=12.0, residual_multiplier=0.22),
    "cohere": config("cohere", logit_scale=0.25),
    "olmo 2": config("olmo2"),
    "phi 3": config("phi3", pad_token_id=0),
    "smollm 3": config("smollm3", pad_token_id=0),
    "qwen3 moe": config("qwen3_moe", **EXPERTS, norm_topk_prob=True),
    "qwen3 moe with many experts a token": config("qwen3_moe", num_experts=64, num_experts_per_tok=32),
    "glm with groups of experts": config(
        "glm4_moe", n_routed_experts=48, n_group=24, topk_group=12, num_experts_per_tok=4, moe_intermediate_size=48,
        n_shared_experts=1, first_k_dense_replace=1,
    ),
    "glm 4.5": config(
        "glm4_moe", n_routed_experts=32, num_experts_per_tok=2, moe_intermediate_size=48, n_shared_experts=1,
        first_k_dense_replace=1, use_qk_norm=True,
    ),
}  # fmt: skip
BOUNDED_TWICE = config("granite", logits_scaling=8.0)
BOUNDED_TWICE.final_logit_softcapping = 30.0
REFUSED = {
    "a bound and a factor": (BOUNDED_TWICE, "final_logit_softcapping=30.0.* and multiplies them by 0.125"),
    "linear attention": (config("qwen3_next"), "supported are"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_supported_models_pass(name: str) -> None:
    check_forward(RIGHT[name])


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_asks_for_more_is_refused_by_name(name: str) -> None:
    model, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        check_forward(model)


def test_a_formula_that_nobody_has_listed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes the third of its logits, without a key for it in its configuration."""
    from transformers import LlamaForCausalLM

    own = LlamaForCausalLM.forward

    def forward(self: Any, *arguments: Any, **others: Any) -> Any:
        output = own(self, *arguments, **others)
        output.logits = output.logits / 3
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(ValueError, match=r"other log-probabilities than LlamaForCausalLM .* differ by up to"):
        check_forward(RIGHT["llama"])


FORMULAS = ["mistral with a window", "qwen3 with windows", "granite", "gemma 2", "gemma 3", "gpt-oss"]


@pytest.mark.parametrize("name", FORMULAS)
def test_what_is_supported_now_would_be_found_without_its_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl.learner import attention, model

    monkeypatch.setattr(model, "logit_factor", lambda config: 1.0)
    monkeypatch.setattr(attention, "Formula", lambda scaling, *others: Plain(scaling, None, None, None))
    monkeypatch.setattr(selfcheck, "SHARED", (0, 0, 0))
    with pytest.raises(ValueError, match="other log-probabilities"):
        check_forward(RIGHT[name])


@pytest.mark.parametrize("name", ["gemma 2", "gpt-oss"])
def test_each_part_of_a_written_out_formula_is_looked_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl.learner import attention

    def without(part: str) -> None:
        monkeypatch.setattr(attention, "Formula", lambda *parts: replace(Plain(*parts), **{part: None}))
        with pytest.raises(ValueError, match="other log-probabilities"):
            check_forward(RIGHT[name])

    for part in ("window", "softcap" if name == "gemma 2" else "sinks"):
        without(part)


def test_the_copy_is_small_and_keeps_every_kind_of_layer() -> None:
    small = small_copy(config("gemma3_text", vocab_size=262_208, num_hidden_layers=26, sliding_window=1024))
    assert set(small.layer_types) == {"sliding_attention", "full_attention"} and small.sliding_window == 8
    glm = small_copy(RIGHT["glm 4.5"])
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(glm).parameters())
    assert parameters < 500_000 and glm.num_hidden_layers == 2 and glm.first_k_dense_replace == 1


def test_the_callers_random_numbers_and_configuration_stay_as_they_are() -> None:
    before = RIGHT["llama"].to_dict()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_forward(RIGHT["llama"])
    assert torch.rand(2).equal(expected) and RIGHT["llama"].to_dict() == before
