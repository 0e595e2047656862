"""The configurations that the learner's multi-process tests run; shared by the tests and the ranks."""

from __future__ import annotations

SMALL_BUCKET = 20_000
"""Bytes; below one layer's experts (8 x 32 x 64 floats), so that they are gathered in slices."""

CASES = {
    1: [("glm", 1, 64, 0), ("glm", 1, 17, 100_000), ("qwen", 1, 64, 100_000), ("llama", 1, 20, 0)],
    2: [
        ("glm", 1, 20, 100_000),
        ("glm", 2, 64, 100_000),
        ("glm", 2, 17, 0),
        ("qwen", 1, 64, 0),
        ("qwen", 2, 17, 100_000),
        ("glm-skewed", 2, 20, 0),
        ("llama", 1, 17, 100_000),
    ],
    # Two ranks hold each expert: an expert's gradient is reduced over another group than the rest.
    4: [("glm", 2, 20, 0), ("qwen", 2, 17, 100_000), ("glm", 4, 64, 0)],
}
"""By world size: model, expert-parallel size, token budget of a micro-batch, persistence threshold of ZeRO-3."""

KINDS = ("glm", "qwen", "glm-skewed", "llama")
