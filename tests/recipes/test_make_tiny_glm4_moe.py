"""The committed quickstart model is reproducible byte for byte, and its tokenizer and config suit the quickstart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.models import make_tiny_glm4_moe as maker
from rewards.extension import Entry
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rl.planning.tensors import tensors_of
from rl.recipe.load import load_recipe
from rollout.envs.registry import ENVIRONMENTS
from tests.support import MODEL, environment, glm45


def test_the_script_reproduces_the_committed_files(tmp_path: Path) -> None:
    maker.write(tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == sorted(p.name for p in MODEL.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (MODEL / name).read_bytes(), f"run {maker.__name__} and commit {name}"


def test_words_and_numbers_are_one_token_wherever_they_stand() -> None:
    tokenizer = glm45().tokenizer
    for word in (*maker.WORDS, *map(str, range(100))):
        (alone,) = tokenizer.encode(word, add_special_tokens=False)
        for text in (f"put {word}.", f'len("{word}")', f"{word}?", f"\n{word}\n"):
            assert alone in tokenizer.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize("text", ["naïve – 東京 🙂\n\tx", "print(f'{1_000:>8}')", "<|user|> /nothink"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = glm45().tokenizer
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_prompts_are_short() -> None:
    chat, sandbox = glm45(), Sandbox(SandboxConfig(kind="unsafe-none"))
    for name in ("python", "store"):  # the model is made for these; a new environment may have longer prompts
        spec = environment(name)
        task = spec.generate(0, 0, "train")
        assert len(chat.open(task.messages, spec.make(task, sandbox).tools, True)) < 64


def test_the_config_is_a_small_glm_4_5() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["Glm4MoeForCausalLM"]
    assert config["vocab_size"] >= len(glm45().tokenizer) and config["vocab_size"] % 32 == 0
    assert config["n_routed_experts"] % 2 == 0, "expert parallelism over two ranks"
    assert 0 < config["first_k_dense_replace"] < config["num_hidden_layers"], "dense layers first, then experts"
    assert config["n_shared_experts"] == 1 and 1 < config["num_experts_per_tok"] < config["n_routed_experts"]
    assert config["use_qk_norm"] and config["num_key_value_heads"] < config["num_attention_heads"]
    tensors = tensors_of(load_recipe("recipes/quickstart.yaml"))
    assert tensors is not None and 1e6 <= tensors.base <= 3e6


def test_a_new_environment_leaves_the_committed_tokenizer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = maker.segments()
    monkeypatch.setitem(ENVIRONMENTS, "another", Entry("no.such.module:Environment"))  # type: ignore[arg-type]
    assert maker.segments() == before
