"""The recipe's `inference:` section."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from rewards.strict import StrictModel

Width = Annotated[int, Field(ge=1)]


class InferenceConfig(StrictModel):
    replicas: int = Field(default=1, ge=1)
    """Number of engines, each with a whole copy of the policy."""
    min_replicas: int | None = Field(default=None, ge=1)
    """How many of them a run begins with; null: all. The others join as soon as a machine of the Ray cluster
    (run.ray_address) has room for them, on CPU one that has no engine. With fewer than all, an engine whose machine
    leaves waits for another; of a hostfile or a SLURM job no machine may leave."""
    tensor_parallel: Width | tuple[Width, ...] = 1
    """GPUs of one engine. A list gives each of the replicas its own number."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Passed through to vLLM's EngineArgs; settings the trainer cannot mirror are refused."""
    cpu_threads: int = Field(default=1, ge=1)
    """Threads of one engine's matrix products."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """GiB of one engine's KV cache on CPU; null: 1. On a GPU set engine_args.gpu_memory_utilization instead."""
    restarts: int = Field(default=3, ge=0)
    """How often in a run an engine that died is started again, all of them together. 0: its death ends the run, as it
    always does with placement: colocated."""
    generate_timeout_s: float | None = Field(default=None, gt=0)
    """Seconds for the completion of one turn, after which the trajectory is tried again. null: there is only
    rollout.trajectory_timeout_s, which ends the trajectory."""

    @model_validator(mode="after")
    def _one_width_for_each(self) -> Self:
        if isinstance(self.tensor_parallel, tuple) and len(self.tensor_parallel) != self.replicas:
            raise ValueError(
                f"inference.tensor_parallel={list(self.tensor_parallel)} has {len(self.tensor_parallel)} engines and "
                f"inference.replicas={self.replicas}: use the same number, or one width for all"
            )
        return self

    @model_validator(mode="after")
    def _begins_with_those_that_it_has(self) -> Self:
        if self.late < 0:
            raise ValueError(
                f"inference.min_replicas={self.min_replicas} is more than inference.replicas={self.replicas}: "
                "a run has no more engines than these"
            )
        return self

    @property
    def late(self) -> int:
        """How many engines, the last ones, may join later."""
        return 0 if self.min_replicas is None else self.replicas - self.min_replicas

    @property
    def widths(self) -> tuple[int, ...]:
        """The GPUs of each engine."""
        given = self.tensor_parallel
        return (given,) * self.replicas if isinstance(given, int) else given

    @property
    def told(self) -> str:
        """The engines and their GPUs, by their keys."""
        first = f" (at first inference.min_replicas={self.min_replicas} of them)" if self.late else ""
        if isinstance(self.tensor_parallel, tuple):
            return f"inference.tensor_parallel={list(self.tensor_parallel)}{first}"
        return f"inference.replicas={self.replicas} × inference.tensor_parallel={self.tensor_parallel}{first}"
