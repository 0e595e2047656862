"""The configurations that the learner's multi-process tests run; shared by the tests and the ranks."""

from __future__ import annotations

from typing import NamedTuple

from rl.learner.config import LoraConfig

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


class TurnCase(NamedTuple):
    kind: str
    expert_parallel: int
    stage: int
    dtype: str = "float32"
    rank: int = 0
    """Of an adapter; 0: all weights are trained."""

    @property
    def lora(self) -> LoraConfig | None:
        return LoraConfig(rank=self.rank) if self.rank else None


TURN_CASES = {
    1: [TurnCase("llama", 1, 2, "bfloat16"), TurnCase("llama", 1, 0, rank=4)],
    2: [TurnCase("glm", 2, 3), TurnCase("glm", 2, 3, "bfloat16", rank=4)],
}
"""The cases of each world size whose states move to the host and back between steps."""

KINDS = ("glm", "qwen", "glm-skewed", "llama")


class AdapterCase(NamedTuple):
    kind: str
    expert_parallel: int
    stage: int
    budget: int = 20
    dora: bool = False
    rslora: bool = False
    targets: tuple[str, ...] | None = None

    @property
    def lora(self) -> LoraConfig:
        return LoraConfig(rank=4, alpha=8.0, dora=self.dora, rslora=self.rslora, targets=self.targets)

    @property
    def folder(self) -> str:
        return f"adapter-{self.kind}-{self.expert_parallel}-{self.stage}-{self.budget}-{self.dora}-{self.rslora}"


ADAPTER_CASES = {
    1: [
        AdapterCase("llama", 1, 0),
        AdapterCase("llama", 1, 2, rslora=True),
        AdapterCase("llama", 1, 3, budget=64),
        AdapterCase("llama", 1, 0, dora=True),
        AdapterCase("glm", 1, 0, targets=("q_proj", "shared_experts.down_proj")),
    ],
    2: [
        AdapterCase("llama", 1, 3, dora=True),
        AdapterCase("llama", 1, 2, budget=17),
        AdapterCase("glm", 1, 3),
        AdapterCase("glm", 2, 3, budget=17),
        AdapterCase("glm", 2, 2),
        AdapterCase("glm", 2, 0, budget=17),
    ],
}
"""The cases of each world size with adapters."""
