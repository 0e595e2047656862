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
    """MiB of each buffer into which tensors are packed on their way, at both ends."""


class WeightSyncConfig(StrictModel):
    transport: SerializeAsAny[TransportSettings] = TransportSettings(name=AUTO)
    """auto: nccl where trainer and engines have GPUs, ipc where they share them; without GPUs shm on one machine, and
    gloo where a run has several, or may get some by inference.min_replicas."""
    bucket_mb: float = Field(default=64.0, gt=0)
    """Upper bound, in MiB, of the full (gathered) tensors that travel at once; a larger tensor travels alone."""
    cache_policy: Literal["recompute", "keep"] = "recompute"
    """Running requests recompute their KV cache under the new weights after a push, or keep it."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of one stage of a push, in seconds. seconds_per_gib is added for each GiB that is moved."""
    seconds_per_gib: float = Field(default=10.0, gt=0)
    verify_every: int = Field(default=0, ge=0)
    """Steps from one verified push to the next: every engine compares the tensors that arrived with the sender's
    digests, and then what it computes with, fused and packed, with these tensors (on GPUs the replicas' checksums are
    compared instead). The first push of a run, resumed or not, is always verified; 0: only that one. The metric
    policy/verified_engines says of each step whether its push was, and policy/read_back_tensors how many tensors were
    compared."""

    def deadline_s(self, moved_bytes: int) -> float:
        """Return the seconds that a stage which moves so many bytes may take."""
        return self.timeout_s + self.seconds_per_gib * moved_bytes / GIB
