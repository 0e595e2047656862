"""The hardware that a recipe wants, compared with the hardware that is there."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config import Recipe
from rl.recipe.checks import cpu_problems, gpu_problems
from rollout.types import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """The hardware of a run on GPUs: the sum over its processes. Colocated engines have GPUs of the trainer's."""

    trainer_gpus: int
    inference_gpus: int
    cpus: int
    shared: bool = False

    @property
    def gpus(self) -> int:
        return self.trainer_gpus if self.shared else self.trainer_gpus + self.inference_gpus


def resolve_device(recipe: Recipe, gpus: int) -> Device:
    """The device a run uses where `gpus` GPUs are seen."""
    if recipe.run.device == "auto":
        return "cuda" if gpus else "cpu"
    return recipe.run.device


def wants(recipe: Recipe, *, trains: bool = True) -> Wants:
    """The hardware that the recipe wants on `cuda`, at first; without a trainer where it does not train."""
    widths = recipe.inference.widths
    first = widths[: len(widths) - recipe.inference.late]
    ranks = recipe.trainer.ranks if trains else 0
    return Wants(
        trainer_gpus=ranks,
        inference_gpus=sum(first),
        cpus=ranks + len(first) + recipe.rollout.workers,
        shared=recipe.placement == "colocated",
    )


def missing_hardware(
    recipe: Recipe,
    *,
    cpus: int,
    gpus: int,
    all_gpus: int | None = None,
    largest_node_gpus: int | None = None,
    held: str = "",
    trains: bool = True,
) -> list[str]:
    """Lines that say what the recipe wants, what is here and how to shrink it; empty when it can start.

    `cpus` and `gpus` count those of all machines together, and `all_gpus` also those that other jobs have; `held` says
    in words what these have. `largest_node_gpus` counts the GPUs of the machine with the most; None when there is only
    this machine.
    """
    if resolve_device(recipe, gpus if all_gpus is None else all_gpus) == "cpu":
        unfit = [problem.text for problem in cpu_problems(recipe)]
        return [*unfit, "no GPU is seen here, so run.device=auto means cpu"] if unfit else []
    if unfit := [problem.text for problem in gpu_problems(recipe)]:
        return [*unfit, "GPUs are seen here, so run.device=auto means cuda"]
    too_wide = _too_wide(recipe, largest_node_gpus)
    wanted = wants(recipe, trains=trains)
    if gpus >= wanted.gpus and cpus >= wanted.cpus:
        return too_wide
    inference = recipe.inference
    return [
        *too_wide,
        f"this recipe wants {wanted.gpus} GPUs and {wanted.cpus} CPU cores; here are {gpus} GPUs and {cpus} CPU cores"
        + (f", because {held}" if held else ""),
        f"the GPUs are {wanted.trainer_gpus} for trainer.ranks={recipe.trainer.ranks} and "
        f"{'of these ' if wanted.shared else ''}{wanted.inference_gpus} for "
        f"{inference.told}; "
        f"the cores are one for every rank, engine and rollout worker (rollout.workers={recipe.rollout.workers})",
        "on several machines: name the others in a run.hostfile, start it in a SLURM job of several nodes, or set "
        "run.ray_address to that of a Ray cluster",
        "smaller: lower those keys and trainer.expert_parallel, with a smaller model=PATH",
        _on_cpus(recipe),
    ]


def _too_wide(recipe: Recipe, largest_node_gpus: int | None) -> list[str]:
    """Check that a single machine can hold an engine, because all GPUs of an engine belong to one Ray actor."""
    width = max(recipe.inference.widths)
    if largest_node_gpus is None or width <= largest_node_gpus:
        return []
    return [
        f"inference.tensor_parallel={width}: an engine stays on one machine, and the largest here has "
        f"{largest_node_gpus} GPUs; use inference.tensor_parallel<={largest_node_gpus}, or larger machines"
    ]


def _on_cpus(recipe: Recipe) -> str:
    """How to start this recipe on a machine whose GPUs are too few, or none."""
    overrides = [
        override
        for override, fits in (
            ("run.device=cpu", recipe.run.device != "cuda"),
            ("model.dtype=float32", recipe.model.dtype == "float32"),
            ("inference.tensor_parallel=1", recipe.inference.tensor_parallel == 1),
        )
        if not fits
    ]
    command = " ".join(["SLUICE_DEVICE=cpu ./launch.sh RECIPE", *overrides])
    return f"without GPUs, for a tiny model only: {command}"
