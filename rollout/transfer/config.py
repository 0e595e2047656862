"""The recipe's `weight_sync:` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewards.strict import StrictModel


class WeightSyncConfig(StrictModel):
    transport: Literal["auto", "shm", "nccl"] = "auto"
    """auto: nccl where trainer and engines have GPUs, shm where all sit on one host without."""
    bucket_mb: float = Field(default=64.0, gt=0)
    """Upper bound of the full (gathered) tensors in flight at once; one larger tensor travels alone."""
    cache_policy: Literal["recompute", "keep"] = "recompute"
    """What running requests do with their KV cache after a push: recompute it under the new weights, or keep it."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of one stage, plus seconds_per_gib for the bytes moved."""
    seconds_per_gib: float = Field(default=10.0, gt=0)
    verify_every: int = Field(default=0, ge=0)
    """Pushes between verified ones: every worker compares what arrived with the sender's digests, and replicas compare
    their checksums. The first push of a run, resumed or not, always is verified; 0: no other."""
