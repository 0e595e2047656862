"""The machines that a recipe is planned for: those that are known here, or those that somebody describes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field

from rewards.strict import StrictModel
from rl.config import Recipe
from rl.driver.layout import Node
from rl.launch.slurm import Share
from rl.processes.memory import memory_bytes
from rl.recipe.hardware import resolve_device, wants
from rl.recipe.machine import PROBE_S, cpu_count, gpu_names

GPUS, CORES_A_GPU = 8, 16
"""Of a usual machine of a cluster."""
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """The machines of a run, the first of which is that of the driver, and the memory of each (`host_bytes`) and of the
    smallest GPU. `known` says from where we know of them, unless they are this machine or were described; `assumed`:
    only from what is usual."""

    nodes: Sequence[Node]
    gpu_bytes: int
    host_bytes: Sequence[int]
    known: str = ""
    assumed: bool = False

    @classmethod
    def alike(
        cls,
        names: Sequence[str],
        *,
        cores: int,
        gpus: int,
        gpu_bytes: int,
        host_bytes: int,
        known: str = "",
        assumed: bool = False,
    ) -> Self:
        """Machines of these names that have as much each."""
        nodes = [Node(id=name, address=name, cpus=cores, gpus=gpus) for name in names]
        return cls(nodes=nodes, gpu_bytes=gpu_bytes, host_bytes=[host_bytes] * len(nodes), known=known, assumed=assumed)

    @property
    def gpus(self) -> int:
        """Those of all machines."""
        return sum(node.gpus for node in self.nodes)

    @property
    def cores(self) -> int:
        """Those of all machines."""
        return sum(node.cpus for node in self.nodes)


class Described(StrictModel):
    """Words of `plan` that describe machines. What is not said is as on a usual machine of a cluster."""

    machines: int | None = Field(default=None, ge=1, le=100_000)
    gpus: int | None = Field(default=None, ge=0, le=10_000)
    cores: int | None = Field(default=None, ge=1, le=1_000_000)
    gpu_gib: float = Field(default=80.0, gt=0)
    host_gib: float = Field(default=1024.0, gt=0)


def machines_for(
    recipe: Recipe, said: Described | None, others: Sequence[str], shares: Mapping[str, Share] | None = None
) -> Machines:
    """The machines of a run with these others beside this one, which have these shares of a SLURM job. What nobody
    describes is as it is on this machine; or as on a usual machine of a cluster if the recipe wants GPUs and there are
    none here."""
    seen = len(gpu_names())
    if said is None and (seen or resolve_device(recipe, seen) == "cpu"):
        return _seen(recipe, seen, others, shares or {})
    assumed, said = said is None, said or Described()
    on_cpu = resolve_device(recipe, seen if said.gpus is None else said.gpus) == "cpu"
    gpus = said.gpus if said.gpus is not None else 0 if on_cpu else GPUS
    enough = 1 + len(others) if others or on_cpu else -(-wants(recipe).gpus // max(gpus, 1))
    count = said.machines or enough
    return Machines.alike(
        ["this machine", *others] if count == 1 + len(others) else [f"machine-{i}" for i in range(count)],
        cores=said.cores or (cpu_count() if on_cpu else CORES_A_GPU * max(gpus, 1)),
        gpus=gpus,
        gpu_bytes=int(said.gpu_gib * GIB),
        host_bytes=int(said.host_gib * GIB),
        known=f"assumed; say {' '.join(f'{word}=' for word in Described.model_fields)} for yours" if assumed else "",
        assumed=assumed,
    )


def _seen(recipe: Recipe, gpus: int, others: Sequence[str], shares: Mapping[str, Share]) -> Machines:
    here = Share(cores=cpu_count(), gpus=gpus, memory_bytes=memory_bytes())
    found = {"this machine": here, **{name: shares.get(name, here) for name in others}}
    return Machines(
        nodes=[Node(id=name, address=name, cpus=one.cores, gpus=one.gpus) for name, one in found.items()],
        gpu_bytes=_gpu_bytes(),
        host_bytes=[one.memory_bytes or memory_bytes() for one in found.values()],
        known=_known(recipe, others, shares),
    )


def _known(recipe: Recipe, others: Sequence[str], shares: Iterable[str]) -> str:
    if recipe.run.ray_address is not None:
        return f"not asked: the cluster at {recipe.run.ray_address}, whose machines machines= and gpus= describe"
    if others and {*others} <= {*shares}:
        return "as the SLURM job has them"
    return "as this machine is" if others else ""


def _gpu_bytes() -> int:
    """The memory of the smallest GPU here; 0 without GPUs."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=PROBE_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return min((int(line) * 2**20 for line in listing.split() if line.isdigit()), default=0)
