"""Loading: random weights come from the seed alone, and paths that are no models are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from rl.batch.tree import Segment
from rl.families.registry import family_of
from rl.learner.model import PolicyModel, load_model

DENSE = family_of({"model_type": "llama"})

LLAMA = LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.2,
)  # fmt: skip


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    LLAMA.save_pretrained(tmp_path)
    return tmp_path


def test_a_directory_without_weights_starts_from_its_seed_and_leaves_the_global_generator_alone(config_only) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    models = [load_model(str(config_only), "float32", seed, DENSE).state_dict() for seed in (5, 5, 6)]
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["lm_head.weight"], models[2]["lm_head.weight"])


def test_saved_weights_are_loaded_in_the_asked_type(config_only: Path, tmp_path: Path) -> None:
    saved = load_model(str(config_only), "float32", 0, DENSE)
    saved.save_pretrained(tmp_path / "saved")
    loaded = load_model(str(tmp_path / "saved"), "bfloat16", 99, DENSE)
    assert loaded.dtype == torch.bfloat16 and loaded.training
    assert torch.equal(loaded.lm_head.weight, saved.lm_head.weight.bfloat16())


def test_the_policy_gives_the_logprobs_of_the_model_under_the_models_names(config_only: Path) -> None:
    model = load_model(str(config_only), "float32", 0, DENSE)
    names = set(model.state_dict())
    policy = PolicyModel(model, chunk=3)
    assert set(policy.state_dict()) == names
    tokens = torch.arange(8) * 5 % 50
    labels, positions = tokens.roll(-1), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    segments = (Segment(0, 5, -1), Segment(5, 8, -1))
    logprobs, entropy = policy(tokens, positions, segments, torch.arange(8), labels, torch.full((8,), 0.5))
    model.set_attn_implementation("sdpa")
    for part in (slice(0, 5), slice(5, 8)):
        hidden = model.model(tokens[None, part]).last_hidden_state[0]
        plain = (hidden @ model.lm_head.weight.T / 0.5).log_softmax(-1)
        torch.testing.assert_close(logprobs[part], plain.gather(1, labels[part, None])[:, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(entropy[part], -(plain.exp() * plain).sum(-1), rtol=1e-5, atol=1e-5)
    some = torch.tensor([6, 1, 1])
    again, _ = policy(tokens, positions, segments, some, labels[some], torch.full((3,), 0.5))
    torch.testing.assert_close(again, logprobs[some])


@pytest.mark.parametrize(("name", "message"), [("empty", "no config.json"), ("missing", "not a directory")])
def test_paths_that_are_no_models_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / name), "float32", 0, DENSE)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no plain"):
        PolicyModel(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)), chunk=1)


@pytest.mark.parametrize(
    ("kinds", "named"), [(["conv", "full_attention"], "conv"), (["linear_attention"] * 2, "linear")]
)
def test_layers_that_carry_a_state_from_row_to_row_are_refused(kinds: list[str], named: str, config_only: Path) -> None:
    model = load_model(str(config_only), "float32", 0, DENSE)
    model.config.layer_types = ["full_attention"]
    PolicyModel(model, chunk=3)
    model = load_model(str(config_only), "float32", 0, DENSE)
    model.config.layer_types = kinds
    with pytest.raises(ValueError, match=f"layers of the kind {named}"):
        PolicyModel(model, chunk=3)


@pytest.mark.parametrize(("key", "factor"), [("logit_scale", 8.0), ("logits_scaling", 1 / 8), (None, 1.0)])
def test_a_factor_of_the_logits_is_applied(config_only: Path, key: str | None, factor: float) -> None:
    model = load_model(str(config_only), "float32", 0, DENSE).double()
    if key is not None:
        setattr(model.config, key, 8.0)
    tokens = torch.arange(8) * 5 % 50
    hidden = model.model(tokens[None], segments=(Segment(0, 8, -1),)).last_hidden_state[0]
    plain = (hidden @ model.lm_head.weight.T * factor / 0.5).log_softmax(-1)
    policy = PolicyModel(model, chunk=3)
    arguments = (torch.arange(8), (Segment(0, 8, -1),), torch.arange(8), tokens, torch.full((8,), 0.5).double())
    logprobs, entropy = policy(tokens, *arguments)
    torch.testing.assert_close(logprobs, plain.gather(1, tokens[:, None])[:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(entropy, -(plain.exp() * plain).sum(-1), rtol=1e-9, atol=1e-9)


def test_a_model_that_bounds_and_multiplies_its_logits_is_refused(config_only: Path) -> None:
    model = load_model(str(config_only), "float32", 0, DENSE)
    model.config.final_logit_softcapping, model.config.logit_scale = 30.0, 8.0
    with pytest.raises(ValueError, match=r"bounds its logits \(final_logit_softcapping=30\.0\) and multiplies"):
        PolicyModel(model, chunk=3)
