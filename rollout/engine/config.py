"""The recipe's `inference:` section."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rewards.strict import StrictModel


class InferenceConfig(StrictModel):
    replicas: int = Field(default=1, ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Passed through to vLLM's AsyncEngineArgs; settings the trainer cannot mirror are refused."""
    cpu_threads: int = Field(default=1, ge=1)
    kv_cache_gib: int = Field(default=1, ge=1)
    """CPU only; on GPU set engine_args.gpu_memory_utilization."""
    generate_timeout_s: float = Field(default=300.0, gt=0)
