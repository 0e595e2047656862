"""Qwen3's dense models: QK-norm, no routed experts."""

from __future__ import annotations

from rl.families.family import Family


class Qwen3(Family):
    """The family `qwen3`. It differs from `dense` in its chat format only."""

    model_types = ("qwen3",)
    renderer = "qwen3"
