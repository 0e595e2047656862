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

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
MASTER_BYTES = 16
"""Per parameter besides the weights: float32 gradient, float32 master copy, two float32 AdamW moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """`hidden` is the width of what one layer hands to the next, for each token."""

    parameters: int
    layers: int
    hidden: int


GLM_45 = ModelSize(parameters=355 * 10**9, layers=92, hidden=5120)
GLM_45_AIR = ModelSize(parameters=106 * 10**9, layers=46, hidden=4096)
PUBLISHED = {
    "zai-org/GLM-4.5": GLM_45,
    "zai-org/GLM-4.5-Base": GLM_45,
    "zai-org/GLM-4.5-Air": GLM_45_AIR,
    "zai-org/GLM-4.5-Air-Base": GLM_45_AIR,
}
"""As the GLM-4.5 report (arXiv:2508.06471, table 1) gives them, without the multi-token-prediction layer; used when the
model's config.json is not on this machine."""


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


def missing_hardware(recipe: Recipe, *, cpus: int, gpus: int, largest_node_gpus: int | None = None) -> list[str]:
    """Lines that say what the recipe wants, what is here and how to shrink it; empty when it can start.

    `cpus` and `gpus` are those of all machines together; `largest_node_gpus` of the one with the most, where known.
    """
    if resolve_device(recipe, gpus) == "cpu":
        unfit = [problem.text for problem in cpu_problems(recipe)]
        return [*unfit, "no GPU is seen here, so run.device=auto means cpu"] if unfit else []
    too_wide = _too_wide(recipe, largest_node_gpus)
    wanted = wants(recipe)
    if gpus >= wanted.gpus and cpus >= wanted.cpus:
        return too_wide
    inference = recipe.inference
    return [
        *too_wide,
        f"this recipe wants {wanted.gpus} GPUs and {wanted.cpus} CPU cores; here are {gpus} GPUs and {cpus} CPU cores",
        f"the GPUs are {wanted.trainer_gpus} for trainer.ranks={recipe.trainer.ranks} and {wanted.inference_gpus} for "
        f"inference.replicas={inference.replicas} × inference.tensor_parallel={inference.tensor_parallel}; "
        f"the cores are one for every rank, engine and rollout worker (rollout.workers={recipe.rollout.workers})",
        "on several machines: start Ray on each of them and set run.ray_address to the cluster's address",
        "smaller: lower those keys and trainer.expert_parallel, with a smaller model=PATH",
        _on_cpus(recipe),
    ]


def _too_wide(recipe: Recipe, largest_node_gpus: int | None) -> list[str]:
    """An engine's GPUs are one Ray actor's: totals over machines say nothing about whether it can be placed."""
    width = recipe.inference.tensor_parallel
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


def model_size(model_path: str) -> ModelSize | None:
    """Size of the model, from its config.json where that is on this machine, else as published, else None."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model_path, local_files_only=True)
    except (OSError, ValueError):
        return PUBLISHED.get(model_path)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
    )


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
    size = model_size(recipe.model.path)
    if size is None:
        return f"unknown: the config.json of {recipe.model.path} is not on this machine"
    weight = DTYPE_BYTES[recipe.model.dtype]
    shard = size.parameters * (weight + MASTER_BYTES) / recipe.trainer.ranks
    engine = size.parameters * weight / recipe.inference.tensor_parallel
    place = "GPU" if device == "cuda" else "process"
    return (
        f"{_scaled(size.parameters)} parameters in {recipe.model.dtype}\n"
        f"trainer: {_bytes(shard)} in each of {recipe.trainer.ranks} ranks for weights, gradients and optimizer states "
        f"(trainer.deepspeed may offload them to the host)\n"
        f"trainer, on top: {_activations(recipe, size)}\n"
        f"inference: {_bytes(engine)} in each engine {place} for weights; the KV cache comes on top\n"
        f"host: a checkpoint is read tensor by tensor; no process holds the whole model beside its own part"
    )


def _activations(recipe: Recipe, size: ModelSize) -> str:
    """What a full micro-batch keeps for the backward pass. The layers' inner tensors depend on too much to be told."""
    trainer = recipe.trainer
    inputs = _bytes(trainer.token_budget * size.layers * size.hidden * DTYPE_BYTES[recipe.model.dtype])
    if trainer.gradient_checkpointing:
        return (
            f"{inputs} for the inputs of {size.layers} layers × trainer.token_budget={trainer.token_budget} tokens, "
            "then all that one layer computes: its gathered weights, its attention, the tokens sent to its experts"
        )
    return (
        f"all that {size.layers} layers compute for trainer.token_budget={trainer.token_budget} tokens, many times the "
        f"{inputs} of their inputs alone; trainer.gradient_checkpointing=true keeps those and one layer's"
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
