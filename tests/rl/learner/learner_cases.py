"""The configurations that the learner's multi-process tests run; shared by the tests and the ranks."""

from __future__ import annotations

from typing import NamedTuple

SMALL_BUCKET = 20_000
"""Bytes. Below the size of one layer's experts (8 x 32 x 64 floats), so that they are gathered in slices."""


class Case(NamedTuple):
    kind: str
    expert_parallel: int
    budget: int
    """Token budget of a micro-batch."""
    persist: int
    """ZeRO-3 keeps parameters of up to this many elements whole."""
    checkpointing: bool = False
    """Whether activations are recomputed in the backward pass."""
    stage: int = 3
    """ZeRO's."""


CASES = {
    1: [
        Case("glm", 1, 64, 0),
        Case("glm", 1, 17, 100_000),
        Case("qwen", 1, 64, 100_000),
        Case("llama", 1, 20, 0),
        Case("glm", 1, 20, 0, stage=0),
        Case("llama", 1, 20, 0, stage=2),
    ],
    2: [
        Case("glm", 1, 20, 100_000),
        Case("glm", 2, 64, 100_000),
        Case("glm", 2, 17, 0),
        Case("glm", 2, 20, 0, checkpointing=True),
        Case("qwen", 1, 64, 0),
        Case("qwen", 2, 17, 100_000),
        Case("glm-skewed", 2, 20, 0),
        Case("llama", 1, 17, 100_000, checkpointing=True),
        Case("glm", 2, 17, 0, stage=0),
        Case("glm", 2, 20, 0, stage=2),
        Case("llama", 1, 17, 0, checkpointing=True, stage=0),
    ],
    # With expert_parallel=2, two ranks hold each expert: its gradient is reduced over another group than the rest.
    4: [Case("glm", 2, 20, 0), Case("qwen", 2, 17, 100_000), Case("glm", 4, 64, 0)],
}
"""The cases of each world size."""

KINDS = ("glm", "qwen", "glm-skewed", "llama")
