"""Qwen3's dense models: QK-norm, no routed experts."""

from __future__ import annotations

from collections.abc import Mapping

from rl.families.family import Family, ModelSize


class Qwen3(Family):
    """The family `qwen3`. It differs from `dense` in its chat format only."""

    model_types = ("qwen3",)
    renderer = "qwen3"
    # From the Qwen3 report (arXiv:2505.09388, table 1) and the models' cards; hidden sizes from their configs.
    published: Mapping[str, ModelSize] = {
        "Qwen/Qwen3-0.6B": ModelSize(parameters=600 * 10**6, layers=28, hidden=1024),
        "Qwen/Qwen3-1.7B": ModelSize(parameters=1700 * 10**6, layers=28, hidden=2048),
        "Qwen/Qwen3-4B": ModelSize(parameters=4000 * 10**6, layers=36, hidden=2560),
        "Qwen/Qwen3-8B": ModelSize(parameters=8200 * 10**6, layers=36, hidden=4096),
    }
