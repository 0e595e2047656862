"""The recipe's `rollout:` and `eval:` sections."""

from __future__ import annotations

from pydantic import Field

from rewards.strict import StrictModel


class SamplingConfig(StrictModel):
    """How training rollouts sample. The trainer has to compute the distribution that was sampled from, so top_p and
    top_k must be off; an evaluation is free (`eval.top_p`, `eval.top_k`)."""

    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the most likely tokens that together have this probability; 1: among all."""
    top_k: int = Field(default=0, ge=0)
    """Sample among this many of the most likely tokens; 0: among all."""
    max_tokens: int = Field(default=256, ge=1)
    """Of one turn."""


class RolloutConfig(StrictModel):
    workers: int = Field(default=1, ge=1)
    """Processes that run agent loops."""
    groups_per_worker: int = Field(default=8, ge=1)
    """Groups a worker runs at the same time."""
    group_size: int = Field(default=8, ge=1)
    """Attempts at one task that are compared with each other."""
    max_turns: int = Field(default=4, ge=1)
    max_context: int = Field(default=2048, ge=16)
    """Tokens that the model sees at once, the prompt and everything after it."""
    thinking: bool = True
    """Which of the model's two modes, where its chat format has two. GLM-4.5: false appends /nothink to every user
    message and opens each assistant turn with an empty think block."""
    sampling: SamplingConfig = SamplingConfig()
    trajectory_timeout_s: float = Field(default=300.0, gt=0)
    """Of a trajectory's acting, all tries together. Scoring has as much time again."""
    infra_retries: int = Field(default=2, ge=0)
    """New tries of a trajectory after infrastructure failures."""
    failure_share_limit: float = Field(default=0.5, gt=0, le=1)
    """A run stops when more than this share of recent trajectories ended as infra_error."""


class EvalConfig(StrictModel):
    every: int = Field(default=0, ge=0)
    """Steps between evaluations besides the ones before and after training; 0: only those two."""
    samples_per_task: int = Field(default=1, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    """0: greedy, the most likely token every time."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)

    def rollout(self, training: RolloutConfig) -> RolloutConfig:
        """How an evaluation runs: as training does, but for the keys of this section."""
        changed = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        sampling = training.sampling.model_copy(update=changed)
        return training.model_copy(update={"group_size": self.samples_per_task, "sampling": sampling})
