"""The recipe's `rollout:` and `eval:` sections."""

from __future__ import annotations

from pydantic import Field, field_validator

from rewards.strict import StrictModel

COLDEST = 0.01
"""Below this temperature, if it is not 0, vLLM samples at 0.01 with a word in its log only."""


class SamplingConfig(StrictModel):
    """Sampling settings of training rollouts.

    The trainer has to compute the distribution that was sampled from, so top_p and top_k must be off here. An
    evaluation may use them (`eval.top_p`, `eval.top_k`).
    """

    temperature: float = Field(default=1.0, ge=COLDEST)
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the most likely tokens that together have this probability; 1: among all."""
    top_k: int = Field(default=0, ge=0)
    """Sample among this many of the most likely tokens; 0: among all."""
    max_tokens: int = Field(default=256, ge=1)
    """Maximum number of tokens that the model samples in one turn."""


class RolloutConfig(StrictModel):
    workers: int = Field(default=1, ge=1)
    """Processes that run agent loops."""
    groups_per_worker: int = Field(default=8, ge=1)
    """Groups a worker runs at the same time."""
    group_size: int = Field(default=8, ge=1)
    """Attempts at one task that are compared with each other."""
    max_turns: int = Field(default=4, ge=1)
    max_context: int = Field(default=2048, ge=16)
    """Maximum number of tokens that the model sees at once: the prompt and everything after it."""
    thinking: bool = True
    """Whether the model thinks before it speaks, where its chat format has both modes. For GLM-4.5, false appends
    /nothink to every user message and opens each assistant turn with an empty think block."""
    sampling: SamplingConfig = SamplingConfig()
    trajectory_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds until a trajectory must stop acting, counted from its first try. Scoring has as much time again."""
    infra_retries: int = Field(default=2, ge=0)
    """Maximum number of new tries of a trajectory after infrastructure failures."""
    failure_share_limit: float = Field(default=0.5, gt=0, le=1)
    """A run stops when more than this share of recent trajectories ended as infra_error."""


class EvalConfig(StrictModel):
    every: int = Field(default=0, ge=0)
    """Steps between evaluations, in addition to those before and after training; 0: only those two."""
    samples_per_task: int = Field(default=1, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy: the most likely token every time. Else at least 0.01."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)

    @field_validator("temperature")
    @classmethod
    def _sampled_as_given(cls, temperature: float) -> float:
        if 0 < temperature < COLDEST:
            raise ValueError(
                f"{temperature:g} is neither 0 (greedy) nor at least {COLDEST}, below which vLLM changes it"
            )
        return temperature

    def rollout(self, training: RolloutConfig) -> RolloutConfig:
        """Return the rollout settings of an evaluation: those of training, changed by this section."""
        changed = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        sampling = training.sampling.model_copy(update=changed)
        return training.model_copy(update={"group_size": self.samples_per_task, "sampling": sampling})
