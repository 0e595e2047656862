"""Qwen3's dense models: QK-norm, no routed experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.families.family import Family


def _shapes(*, layers: int, hidden: int, width: int, heads: int, tied: bool) -> Mapping[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": tied,
    }


class Qwen3(Family):
    """The family `qwen3`. It differs from `dense` in its chat format only."""

    model_types = ("qwen3",)
    renderer = "qwen3"
    published: Mapping[str, Mapping[str, Any]] = {
        "Qwen/Qwen3-0.6B": _shapes(layers=28, hidden=1024, width=3072, heads=16, tied=True),
        "Qwen/Qwen3-1.7B": _shapes(layers=28, hidden=2048, width=6144, heads=16, tied=True),
        "Qwen/Qwen3-4B": _shapes(layers=36, hidden=2560, width=9728, heads=32, tied=True),
        "Qwen/Qwen3-8B": _shapes(layers=36, hidden=4096, width=12288, heads=32, tied=False),
    }
