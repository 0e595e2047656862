"""How many pods a recipe needs on Kubernetes, and how large each must be, computed from the recipe alone."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config import Recipe
from rl.recipe.hardware import resolve_device, wants

HEAD_CPUS = 4
"""For the driver, the buffer and Ray's own processes, beside the rollout workers there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """The pods with GPUs besides the head: how many, the GPUs of each, and the CPU cores that each pod needs."""

    count: int
    gpus: int
    cpus: int
    head_cpus: int


def pods_of(recipe: Recipe, gpus: int) -> Pods:
    """The pods of a run, each with up to `gpus` GPUs. A run on CPUs has the head alone.

    Raises:
        ValueError: an engine does not fit into a pod, or weights cannot get from one pod to another.
    """
    every_engine = recipe.inference.model_copy(update={"min_replicas": None})
    recipe = recipe.model_copy(update={"inference": every_engine})
    if resolve_device(recipe, gpus) == "cpu":
        return Pods(count=0, gpus=0, cpus=0, head_cpus=max(wants(recipe).cpus, HEAD_CPUS))
    count = _count(recipe, gpus)
    if count > 1 and recipe.weight_sync.transport.name == "shm":
        raise ValueError(
            f"weight_sync.transport=shm stays on one machine, and this run needs {count} of gpus={gpus}: "
            "use auto, gloo or nccl, or fewer GPUs"
        )
    each = min(gpus, wants(recipe).gpus) if count == 1 else gpus
    workers = -(-recipe.rollout.workers // (count + 1))  # they are dealt out over all machines, the head among them
    return Pods(count=count, gpus=each, cpus=each + workers, head_cpus=HEAD_CPUS + workers)


def _count(recipe: Recipe, gpus: int) -> int:
    """Ranks fill one pod after another, and an engine is within one pod."""
    width, wanted = max(recipe.inference.widths), wants(recipe)
    if width > gpus:
        raise ValueError(
            f"inference.tensor_parallel={width}: an engine stays on one machine, and gpus={gpus} is what each has: "
            f"give gpus={width}, or lower it"
        )
    full, rest = divmod(wanted.trainer_gpus, gpus)
    pods = full + bool(rest)
    if wanted.shared:
        return pods
    beside = (gpus - rest) // width if rest else 0
    return pods - (-max(recipe.inference.replicas - beside, 0) // (gpus // width))
