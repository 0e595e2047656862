"""A tiny random dense model, and the settings of a short run with it.

It is rewarded for using many different characters, so that groups differ from the start.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rl.paths import REPOSITORY

REWARD = """
from rewards.contracts import Ending, Reward


class Variety(Reward):
    parts = ("variety",)

    async def score(self, ending: Ending) -> dict[str, float]:
        said = [str(message["content"]) for message in ending.messages if message["role"] == "assistant"]
        return {"variety": len(set("".join(said))) / 40}
"""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def make_dense(path: Path) -> None:
    """A Llama with the quickstart's tokenizer, and the reward beside it."""
    tiny = REPOSITORY / "recipes/models/tiny-glm4-moe"
    config = json.loads((tiny / "config.json").read_text())
    for name in TOKENIZER:
        if (tiny / name).is_file():
            shutil.copyfile(tiny / name, path / name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=config["vocab_size"],
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.05,
            eos_token_id=config["eos_token_id"],
        )
    )
    model.save_pretrained(path)
    (path / "variety.py").write_text(REWARD)


def overrides(dense: Path, *more: str) -> tuple[str, ...]:
    """What makes a recipe of an adapter a short run with that model."""
    source = f"{{environment: store, rewards: ['{dense}/variety.py:Variety'], success: {{variety: 0.5}}}}"
    return (
        f"model.path={dense}",
        "model.renderer=glm-4.5",
        "lora={rank: 8, alpha: 32}",
        f"tasks.sources=[{source}]",
        "tasks.eval_size=8",
        "rollout.max_context=640",
        "trainer.optimizer.lr=2e-3",
        "checkpoint.every=2",
        *more,
    )
