"""The machines of a Ray cluster, what an actor reserves there, and the GPUs of ranks that colocated engines share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rl.driver.layout import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The resources that one actor reserves, and its machine, by Ray's id; None: any. On CPU, actors reserve no cores,
    so that all of them fit on a two-core machine."""

    cpus: float = 0
    gpus: float = 0
    node: str | None = None

    def options(self) -> dict[str, Any]:
        strategy = "DEFAULT" if self.node is None else NodeAffinitySchedulingStrategy(self.node, soft=False)
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": strategy}


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
    return Place(cpus=1, node=seat.node)


def alive_nodes() -> list[dict[str, Any]]:
    """What Ray says of each machine of the cluster that this process has joined."""
    return [node for node in ray.nodes() if node["Alive"]]


def nodes_of_cluster(own: str) -> list[Node]:
    """The machines of the Ray cluster, the driver's own first, the others by their addresses: the same cluster gives
    every start the same places. What is taken is told apart from what is free: other jobs have it, or this run's own
    actors, once there are some. A machine that has not said yet what is free has everything free."""
    free = available_resources_per_node()
    found = [_node(node, free.get(node["NodeID"], node["Resources"])) for node in alive_nodes()]
    return sorted(found, key=lambda node: (node.id != own, _numbers_in(node.address), node.id))


def _node(node: Mapping[str, Any], free: Mapping[str, float]) -> Node:
    cpus, gpus = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
    free_cpus, free_gpus = min(cpus, int(free.get("CPU", 0))), min(gpus, int(free.get("GPU", 0)))
    return Node(
        id=node["NodeID"],
        address=node["NodeManagerAddress"],
        cpus=free_cpus,
        gpus=free_gpus,
        taken_cpus=cpus - free_cpus,
        taken_gpus=gpus - free_gpus,
    )


def _numbers_in(address: str) -> tuple[int, int]:
    """An address as a number, after its version; names of machines come last."""
    try:
        found = ip_address(address)
    except ValueError:
        return 10, 0
    return found.version, int(found)
