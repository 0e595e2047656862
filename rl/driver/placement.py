"""The resources that an actor reserves in a Ray cluster, and the GPUs of ranks that colocated engines share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The resources that one actor reserves, and Ray's scheduling strategy. On CPU, actors reserve no cores, so that
    all of them fit on a two-core machine."""

    cpus: float = 0
    gpus: float = 0
    strategy: Any = "DEFAULT"

    def options(self) -> dict[str, Any]:
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": self.strategy}


@dataclass(frozen=True, slots=True, order=True)
class Seat:
    """A trainer rank's machine, by Ray's id, and GPU, as CUDA_VISIBLE_DEVICES names it."""

    node: str
    gpu: str


def shared_seats(seats: Sequence[Seat], engines: int, width: int) -> list[list[Seat]]:
    """Deal the trainer's seats out to engines of `width` GPUs each, which take turns with it there.

    Raises:
        ValueError: there are too few, or an engine's would lie on several machines.
    """
    if engines * width > len(seats):
        raise ValueError(f"{engines} engines of {width} GPUs do not fit on the GPUs of {len(seats)} trainer ranks")
    ordered = sorted(seats)
    dealt = [ordered[start : start + width] for start in range(0, engines * width, width)]
    for number, own in enumerate(dealt):
        if len({seat.node for seat in own}) > 1:
            raise ValueError(
                f"placement=colocated: engine {number} would have GPUs of several machines: make "
                f"inference.tensor_parallel={width} a divisor of the trainer ranks on each machine"
            )
    return dealt


def beside(seat: Seat) -> Place:
    """A place on a seat's machine that reserves no GPU: the rank that sits there has reserved it."""
    return Place(cpus=1, strategy=NodeAffinitySchedulingStrategy(seat.node, soft=False))
