"""The recipe's `rollout:` and `eval:` sections."""

from __future__ import annotations

from pydantic import Field

from rewards.strict import StrictModel


class SamplingConfig(StrictModel):
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=256, ge=1)
    """Per turn."""


class RolloutConfig(StrictModel):
    workers: int = Field(default=1, ge=1)
    groups_per_worker: int = Field(default=8, ge=1)
    """Groups a worker runs at the same time."""
    group_size: int = Field(default=8, ge=1)
    max_turns: int = Field(default=4, ge=1)
    max_context: int = Field(default=2048, ge=16)
    """Tokens of a whole trajectory, prompt included."""
    thinking: bool = True
    """GLM-4.5's thinking mode; false appends /nothink to every user message and opens each assistant turn with an empty
    think block."""
    sampling: SamplingConfig = SamplingConfig()
    trajectory_timeout_s: float = Field(default=300.0, gt=0)
    infra_retries: int = Field(default=2, ge=0)
    failure_share_limit: float = Field(default=0.5, gt=0, le=1)
    """A run stops when more than this share of recent trajectories ended as infra_error."""


class EvalConfig(StrictModel):
    every: int = Field(default=0, ge=0)
    """Steps between evaluations besides the ones before and after training; 0: only those two."""
    samples_per_task: int = Field(default=1, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    success_reward: float = 1.0
    """A trajectory whose total reward reaches this counts as a success."""
