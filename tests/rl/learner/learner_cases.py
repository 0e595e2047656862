"""The configurations that the learner's multi-process tests run; shared by the tests and the ranks."""

from __future__ import annotations

from typing import NamedTuple

SMALL_BUCKET = 20_000
"""Bytes; below one layer's experts (8 x 32 x 64 floats), so that they are gathered in slices."""


class Case(NamedTuple):
    kind: str
    expert_parallel: int
    budget: int
    """Tokens of a micro-batch."""
    persist: int
    """Elements up to which ZeRO-3 keeps a parameter whole."""
    checkpointing: bool = False
    """Activations are computed again in backward."""


CASES = {
    1: [Case("glm", 1, 64, 0), Case("glm", 1, 17, 100_000), Case("qwen", 1, 64, 100_000), Case("llama", 1, 20, 0)],
    2: [
        Case("glm", 1, 20, 100_000),
        Case("glm", 2, 64, 100_000),
        Case("glm", 2, 17, 0),
        Case("glm", 2, 20, 0, checkpointing=True),
        Case("qwen", 1, 64, 0),
        Case("qwen", 2, 17, 100_000),
        Case("glm-skewed", 2, 20, 0),
        Case("llama", 1, 17, 100_000, checkpointing=True),
    ],
    # Two ranks hold each expert: an expert's gradient is reduced over another group than the rest.
    4: [Case("glm", 2, 20, 0), Case("qwen", 2, 17, 100_000), Case("glm", 4, 64, 0)],
}
"""By world size."""

KINDS = ("glm", "qwen", "glm-skewed", "llama")
