"""What each actor reserves of the cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one actor reserves. On CPU machines nothing is reserved: two cores carry every role, as wanted."""

    cpus: float = 0
    gpus: float = 0

    def options(self) -> dict[str, float]:
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}
