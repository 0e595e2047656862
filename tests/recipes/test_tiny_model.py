"""The committed quickstart model: reproducible byte for byte, and fit for what it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.models import make_tiny_glm4_moe as maker
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rollout.chat.glm45 import Chat
from rollout.envs.registry import ENVIRONMENTS

MODEL = Path(maker.__file__).parent / "tiny-glm4-moe"


def test_the_script_reproduces_the_committed_files(tmp_path: Path) -> None:
    maker.write(tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == sorted(p.name for p in MODEL.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (MODEL / name).read_bytes(), f"run {maker.__name__} and commit {name}"


def test_words_and_numbers_are_one_token_wherever_they_stand() -> None:
    tokenizer = Chat.load(MODEL).tokenizer
    for word in (*maker.WORDS, *map(str, range(100))):
        (alone,) = tokenizer.encode(word, add_special_tokens=False)
        for text in (f"put {word}.", f'len("{word}")', f"{word}?", f"\n{word}\n"):
            assert alone in tokenizer.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize("text", ["naïve – 東京 🙂\n\tx", "print(f'{1_000:>8}')", "<|user|> /nothink"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = Chat.load(MODEL).tokenizer
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_prompts_are_short() -> None:
    chat, sandbox = Chat.load(MODEL), Sandbox(SandboxConfig(kind="unsafe-none"))
    for name in ("python", "store"):  # what this model is made for; a new environment may say more
        spec = ENVIRONMENTS[name]
        task = spec.generate(0, 0, "train")
        assert len(chat.open(task.messages, spec.make(task, sandbox).tools, True)) < 64


def test_the_config_is_a_small_glm_4_5() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["Glm4MoeForCausalLM"]
    assert config["vocab_size"] >= len(Chat.load(MODEL).tokenizer) and config["vocab_size"] % 32 == 0
    assert config["n_routed_experts"] % 2 == 0, "expert parallelism over two ranks"
