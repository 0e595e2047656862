"""The recipe's `weight_sync:` section."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, SerializeAsAny

from rewards.strict import Named, StrictModel

AUTO = "auto"
GIB = 2**30


class TransportSettings(Named):
    """The base of every weight transport's settings; `transport: NAME` is short for `transport: {name: NAME}`."""

    kind: ClassVar[str] = "transport"


class NcclSettings(TransportSettings):
    buffer_mb: float = Field(default=64.0, gt=0)
    """What tensors are packed into on their way, at each end."""


class WeightSyncConfig(StrictModel):
    transport: SerializeAsAny[TransportSettings] = TransportSettings(name=AUTO)
    """auto: nccl where trainer and engines have GPUs, shm where all sit on one host without."""
    bucket_mb: float = Field(default=64.0, gt=0)
    """Upper bound of the full (gathered) tensors in flight at once; one larger tensor travels alone."""
    cache_policy: Literal["recompute", "keep"] = "recompute"
    """What running requests do with their KV cache after a push: recompute it under the new weights, or keep it."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of one stage of a push, to which seconds_per_gib is added for the bytes that it moves."""
    seconds_per_gib: float = Field(default=10.0, gt=0)
    verify_every: int = Field(default=0, ge=0)
    """Pushes between verified ones: every worker compares what arrived with the sender's digests, and replicas compare
    their checksums. The first push of a run, resumed or not, always is verified; 0: no other."""

    def deadline_s(self, moved_bytes: int) -> float:
        """How long a stage that moves so many bytes may take."""
        return self.timeout_s + self.seconds_per_gib * moved_bytes / GIB
