"""The place of each actor in a Ray cluster, and the resources that it reserves there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rollout.types import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The resources that one actor reserves, and Ray's scheduling strategy. On CPU, actors reserve no cores, so that
    all of them fit on a two-core machine."""

    cpus: float = 0
    gpus: float = 0
    strategy: Any = "DEFAULT"

    def options(self) -> dict[str, Any]:
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": self.strategy}


def trainer_places(ranks: int, device: Device) -> list[Place]:
    """One place per rank. On GPUs, each has a core and a GPU, on as few machines as can hold them."""
    if device == "cpu":
        return [Place()] * ranks
    group = placement_group([{"CPU": 1, "GPU": 1}] * ranks, strategy="PACK")
    return [
        Place(cpus=1, gpus=1, strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank))
        for rank in range(ranks)
    ]
