"""What a recipe wants of the machine, and what `plan` prints. Starts nothing and downloads nothing.

The rule: `run.device=cpu` runs anywhere (ranks and engines share the cores). `cuda` wants one GPU for every trainer
rank and `tensor_parallel` GPUs for every engine, plus a CPU core for each process. `auto` is cuda where a GPU is seen,
else cpu. rl.cli asks about this machine; rl.run asks about a cluster it has connected to.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl import marked_yaml
from rl.checks import cpu_problems
from rl.config import Recipe
from rl.recipe import derived
from rollout.types import Device

PUBLISHED_BILLIONS = {
    "zai-org/GLM-4.5": (355, 32),
    "zai-org/GLM-4.5-Base": (355, 32),
    "zai-org/GLM-4.5-Air": (106, 12),
    "zai-org/GLM-4.5-Air-Base": (106, 12),
}
"""Parameters in billions, all and active per token, as the GLM-4.5 report (arXiv:2508.06471, table 1) gives them;
used when the model's config.json is not on this machine."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
MASTER_BYTES = 16
"""Per parameter besides the weights: float32 gradient, float32 master copy, two float32 AdamW moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """The hardware of a run on GPUs: the sum over its processes."""

    trainer_gpus: int
    inference_gpus: int
    cpus: int

    @property
    def gpus(self) -> int:
        return self.trainer_gpus + self.inference_gpus


def resolve_device(recipe: Recipe, gpus: int) -> Device:
    """The device a run uses where `gpus` GPUs are seen."""
    if recipe.run.device == "auto":
        return "cuda" if gpus else "cpu"
    return recipe.run.device


def wants(recipe: Recipe) -> Wants:
    """What the recipe wants on `cuda`."""
    inference = recipe.inference
    return Wants(
        trainer_gpus=recipe.trainer.ranks,
        inference_gpus=inference.replicas * inference.tensor_parallel,
        cpus=recipe.trainer.ranks + inference.replicas + recipe.rollout.workers,
    )


def missing_hardware(recipe: Recipe, *, cpus: int, gpus: int) -> list[str]:
    """Lines that say what the recipe wants, what is here and how to shrink it; empty when it can start."""
    if resolve_device(recipe, gpus) == "cpu":
        unfit = [problem.text for problem in cpu_problems(recipe)]
        return [*unfit, "no GPU is seen here, so run.device=auto means cpu"] if unfit else []
    wanted = wants(recipe)
    if gpus >= wanted.gpus and cpus >= wanted.cpus:
        return []
    inference = recipe.inference
    return [
        f"this recipe wants {wanted.gpus} GPUs and {wanted.cpus} CPU cores; here are {gpus} GPUs and {cpus} CPU cores",
        f"the GPUs are {wanted.trainer_gpus} for trainer.ranks={recipe.trainer.ranks} and {wanted.inference_gpus} for "
        f"inference.replicas={inference.replicas} × inference.tensor_parallel={inference.tensor_parallel}; "
        f"the cores are one for every rank, engine and rollout worker (rollout.workers={recipe.rollout.workers})",
        "on several machines: start Ray on each of them and set run.ray_address to the cluster's address",
        "smaller: lower those keys and trainer.expert_parallel, with a smaller model=PATH",
        "without GPUs: a tiny model, run.device=cpu model.dtype=float32 inference.tensor_parallel=1",
    ]


def count_parameters(model_path: str) -> int | None:
    """Parameters of the model, from its config.json where that is on this machine, else as published, else None."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model_path, local_files_only=True)
    except (OSError, ValueError):
        published = PUBLISHED_BILLIONS.get(model_path)
        return published[0] * 10**9 if published else None
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def describe(recipe: Recipe, *, cpus: int, gpus: int) -> str:
    """The text of `plan`: the resolved recipe, its batch arithmetic, the memory and hardware it wants, the verdict."""
    device = resolve_device(recipe, gpus)
    sections = [
        ("resolved recipe", marked_yaml.dump(recipe.model_dump(mode="json")).rstrip()),
        ("derived", "\n".join(f"{name}: {value}" for name, value in derived(recipe).items())),
        ("memory", _memory(recipe, device)),
        ("hardware", _hardware(recipe, device, cpus, gpus)),
    ]
    return "\n\n".join(f"── {title} ──\n{text}" for title, text in sections)


def _memory(recipe: Recipe, device: Device) -> str:
    parameters = count_parameters(recipe.model.path)
    if parameters is None:
        return f"unknown: the config.json of {recipe.model.path} is not on this machine"
    weight = DTYPE_BYTES[recipe.model.dtype]
    shard = parameters * (weight + MASTER_BYTES) / recipe.trainer.ranks
    engine = parameters * weight / recipe.inference.tensor_parallel
    place = "GPU" if device == "cuda" else "process"
    return (
        f"{_scaled(parameters)} parameters in {recipe.model.dtype}\n"
        f"trainer: {_bytes(shard)} in each of {recipe.trainer.ranks} ranks for weights, gradients and optimizer "
        f"states; activations come on top\n"
        f"inference: {_bytes(engine)} in each engine {place} for weights; the KV cache comes on top"
    )


def _hardware(recipe: Recipe, device: Device, cpus: int, gpus: int) -> str:
    here = f"here: {gpus} GPUs, {cpus} CPU cores"
    if device == "cpu":
        verdict = missing_hardware(recipe, cpus=cpus, gpus=gpus) or ["can start here"]
        return "\n".join([f"run.device={recipe.run.device}: runs on CPU", here, *verdict])
    wanted = wants(recipe)
    lines = [
        f"run.device={recipe.run.device}: wants {wanted.gpus} GPUs ({wanted.trainer_gpus} trainer, "
        f"{wanted.inference_gpus} inference) and {wanted.cpus} CPU cores",
        here,
    ]
    if recipe.run.ray_address is not None:
        return "\n".join([*lines, f"the Ray cluster at {recipe.run.ray_address} is asked when the run starts"])
    return "\n".join([*lines, *(missing_hardware(recipe, cpus=cpus, gpus=gpus) or ["can start here"])])


def _scaled(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
