"""The recipe's `inference:` section."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rewards.strict import StrictModel


class InferenceConfig(StrictModel):
    replicas: int = Field(default=1, ge=1)
    """Number of engines, each with a whole copy of the policy."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of one engine."""
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
