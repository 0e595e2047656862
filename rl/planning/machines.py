"""The machines that a recipe is planned for: those that are known here, or those that somebody describes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from rewards.strict import StrictModel
from rl.config import Recipe
from rl.driver.layout import Node
from rl.processes.memory import memory_bytes
from rl.recipe.hardware import resolve_device, wants
from rl.recipe.machine import PROBE_S, cpu_count, gpu_names

GPUS, CORES_A_GPU = 8, 16
"""Of a usual machine of a cluster."""
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Machines that are all alike. `names`: the first is that of the driver. `known` says from where we know of them,
    unless they are this machine or were described; `assumed`: only from what is usual."""

    names: Sequence[str]
    cores: int
    gpus: int
    gpu_bytes: int
    host_bytes: int
    known: str = ""
    assumed: bool = False

    def nodes(self) -> list[Node]:
        return [Node(id=name, address=name, cpus=self.cores, gpus=self.gpus) for name in self.names]


class Described(StrictModel):
    """Words of `plan` that describe machines. What is not said is as on a usual machine of a cluster."""

    machines: int | None = Field(default=None, ge=1, le=100_000)
    gpus: int | None = Field(default=None, ge=0, le=10_000)
    cores: int | None = Field(default=None, ge=1, le=1_000_000)
    gpu_gib: float = Field(default=80.0, gt=0)
    host_gib: float = Field(default=1024.0, gt=0)


def machines_for(recipe: Recipe, said: Described | None, others: Sequence[str]) -> Machines:
    """The machines of a run with these others beside this one. What nobody describes is as it is on this machine; or as
    on a usual machine of a cluster if the recipe wants GPUs and there are none here."""
    seen = len(gpu_names())
    if said is None and (seen or resolve_device(recipe, seen) == "cpu"):
        return Machines(
            names=["this machine", *others],
            cores=cpu_count(),
            gpus=seen,
            gpu_bytes=_gpu_bytes(),
            host_bytes=memory_bytes(),
            known=_known(recipe, others),
        )
    assumed, said = said is None, said or Described()
    on_cpu = resolve_device(recipe, seen if said.gpus is None else said.gpus) == "cpu"
    gpus = said.gpus if said.gpus is not None else 0 if on_cpu else GPUS
    enough = 1 + len(others) if others or on_cpu else -(-wants(recipe).gpus // max(gpus, 1))
    count = said.machines or enough
    return Machines(
        names=["this machine", *others] if count == 1 + len(others) else [f"machine-{i}" for i in range(count)],
        cores=said.cores or (cpu_count() if on_cpu else CORES_A_GPU * max(gpus, 1)),
        gpus=gpus,
        gpu_bytes=int(said.gpu_gib * GIB),
        host_bytes=int(said.host_gib * GIB),
        known=f"assumed; say {' '.join(f'{word}=' for word in Described.model_fields)} for yours" if assumed else "",
        assumed=assumed,
    )


def _known(recipe: Recipe, others: Sequence[str]) -> str:
    if recipe.run.ray_address is not None:
        return f"not asked: the cluster at {recipe.run.ray_address}, whose machines machines= and gpus= describe"
    return "as this machine is" if others else ""


def _gpu_bytes() -> int:
    """The memory of the smallest GPU here; 0 without GPUs."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=PROBE_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return min((int(line) * 2**20 for line in listing.split() if line.isdigit()), default=0)
