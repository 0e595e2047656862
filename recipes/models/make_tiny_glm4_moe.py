"""Write recipes/models/tiny-glm4-moe: the quickstart's model config and tokenizer, but no weights (a seed gives them).

    .venv/bin/python -m recipes.models.make_tiny_glm4_moe [DIRECTORY]

The tokenizer has GLM-4.5's special tokens and a small byte-level BPE, so it can write any text. Its merges are learned
on the conversations of the quickstart's environments, cut at the words and numbers that vary. So a fixed phrase
(GLM-4.5's tool preamble, a tool's schema) becomes a few tokens. A varying word is one token wherever it stands, and a
number one token for every two digits; a model this small learns to copy these in seconds. The output is deterministic:
a test runs this again and compares bytes.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rollout.chat.config import RendererSettings
from rollout.chat.demonstrations import render_demonstration
from rollout.chat.glm45 import Glm45
from rollout.contracts import Demonstrator
from rollout.envs.common import ANIMALS, ITEMS, PLACES
from rollout.envs.config import EnvironmentSettings, PythonSettings
from rollout.envs.registry import make_environment

SPECIAL_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink",
)  # fmt: skip
NUMBER = r"\d{1,2}"
WORDS = (*ITEMS, *ANIMALS, *PLACES)
VOCABULARY = 1280
LEARNED_FROM = (PythonSettings(name="python"), EnvironmentSettings(name="store"))
"""The environments that the merges are learned on. They are listed here, so that a new environment does not change the
committed tokenizer."""
DEMONSTRATIONS = 100
"""The number of oracle conversations from each environment."""


def untrained_tokenizer() -> Tokenizer:
    """A tokenizer of single bytes. It splits text only at numbers and varying words: merges may span a fixed phrase."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join([NUMBER, *WORDS])), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def trained_tokenizer(segments: list[str], size: int) -> Tokenizer:
    """A tokenizer with merges learned within each segment, then the special tokens. `size` includes those."""
    tokenizer = untrained_tokenizer()
    trainer = BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(segments, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def segments() -> list[str]:
    """Every fixed phrase and every varying word of the environments' conversations, once each, sorted."""
    chat = Glm45(wrapped(trained_tokenizer([], 256 + len(SPECIAL_TOKENS))), RendererSettings(name="glm-4.5"))
    cut = re.compile("|".join([NUMBER, *WORDS, *map(re.escape, SPECIAL_TOKENS)]))
    found = {*WORDS, *map(str, range(100))}
    sandbox = Sandbox(SandboxConfig())
    for settings in LEARNED_FROM:
        spec = make_environment(settings)
        assert isinstance(spec, Demonstrator)
        rng = random.Random(settings.name)
        for index in range(DEMONSTRATIONS):
            task = spec.generate(index, 0, "train")
            tools = spec.make(task, sandbox).tools
            token_ids, _ = render_demonstration(chat, spec.demonstrate(task, rng), tools, thinking=True)
            found.update(cut.split(chat.decode(token_ids)))
    return sorted(found - {""})


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def model_config(vocabulary: int, special: dict[str, int]) -> dict[str, Any]:
    """The config of a tiny GLM-4.5: dense first layer, sigmoid routing with correction bias, QK-norm, GQA, a shared
    expert."""
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "vocab_size": vocabulary,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "use_qk_norm": True,
        "attention_bias": False,
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 30.0, "partial_rotary_factor": 0.5},
        "max_position_embeddings": 2048,
        "first_k_dense_replace": 1,
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 160,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 0,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "eos_token_id": [special["<|endoftext|>"], special["<|user|>"], special["<|observation|>"]],
        "pad_token_id": special["<|endoftext|>"],
        "dtype": "float32",
    }


def write(directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and config.json into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = trained_tokenizer(segments(), VOCABULARY)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    special = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    rounded = -(-tokenizer.get_vocab_size() // 32) * 32
    _write_json(directory / "config.json", model_config(rounded, special))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "tiny-glm4-moe")
