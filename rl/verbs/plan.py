"""`plan`: show what a recipe resolves to, its memory and its hardware. Starts nothing and downloads nothing.

`run.device=cpu` runs anywhere (ranks and engines share the cores). `cuda` wants one GPU for every trainer rank and
`tensor_parallel` GPUs for every engine, plus a CPU core for every rank, engine and rollout worker. `auto` is cuda where
a GPU is seen, else cpu. `rl.verbs.train` checks this machine; the driver checks the Ray instance it has connected to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rewards.errors import one_line
from rl.config import Recipe
from rl.driver.check_chat import ChatReport, chat_report
from rl.exitcodes import NOTHING_STARTED
from rl.families.family import ModelSize
from rl.families.registry import published_size
from rl.recipe import marked_yaml
from rl.recipe.checks import remarks
from rl.recipe.hardware import missing_hardware, resolve_device, wants
from rl.recipe.machine import cpu_count, gpu_names
from rl.recipe.resolved import derived
from rl.verbs.usage import read_recipe, refuse
from rl.zero.deepspeed_config import zero_stage
from rollout.types import DTYPE_BYTES, Device

MASTER_BYTES = 16
"""Bytes per parameter besides the weights: float32 gradient, float32 master copy, two float32 AdamW moments."""


BUCKETS = 4
"""Buckets on a shared GPU at once: one is gathered, two are lent, one is copied by the engine's worker."""


def plan(argv: Sequence[str]) -> int:
    """Print what a recipe resolves to. `argv` is its path and overrides."""
    if not argv:
        return refuse("plan needs a recipe: ./launch.sh plan RECIPE [key=value …]")
    recipe = read_recipe(argv)
    if recipe is None:
        return NOTHING_STARTED
    if problem := unsupported(recipe.model.path):
        return refuse(f"model.path={recipe.model.path}: {problem}")
    report = chat_report(recipe) if os.path.isdir(recipe.model.path) else ChatReport()
    if report.problems:
        return refuse("\n".join(report.problems))
    print(describe(recipe, cpus=cpu_count(), gpus=len(gpu_names()), warnings=report.warnings))
    return 0


def unsupported(model_path: str) -> str | None:
    """Why the trainer cannot compute a model that is on this machine; None if it can, or if the model is elsewhere."""
    from transformers import AutoConfig

    from rl.learner.selfcheck import check_forward

    if not os.path.isfile(Path(model_path) / "config.json"):
        return None
    try:
        check_forward(AutoConfig.from_pretrained(model_path, local_files_only=True))
    except Exception as error:  # whatever transformers makes of a broken config.json
        return one_line(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error), 400)
    return None


def model_size(model_path: str) -> ModelSize | None:
    """Size of the model: from its config.json if that is on this machine, else as published if known, else None."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model_path, local_files_only=True)
    except (OSError, ValueError):
        return published_size(model_path)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
    )


def describe(recipe: Recipe, *, cpus: int, gpus: int, warnings: Sequence[str] = ()) -> str:
    """The text of `plan`: the resolved recipe, its batch arithmetic, the memory and hardware it wants, the verdict.
    `warnings` are shown among the remarks."""
    device = resolve_device(recipe, gpus)
    sections = [
        ("resolved recipe", marked_yaml.dump(recipe.model_dump(mode="json")).rstrip()),
        ("derived", "\n".join(f"{name}: {value}" for name, value in derived(recipe).items())),
        ("memory", _memory(recipe, device)),
        ("hardware", _hardware(recipe, device, cpus, gpus)),
        ("remarks", "\n".join([*remarks(recipe), *warnings])),
    ]
    return "\n\n".join(f"── {title} ──\n{text}" for title, text in sections if text)


def _memory(recipe: Recipe, device: Device) -> str:
    size = model_size(recipe.model.path)
    if size is None:
        return f"unknown: the config.json of {recipe.model.path} is not on this machine"
    weight = DTYPE_BYTES[recipe.model.dtype]
    trainer, divided = _states(recipe, size, weight)
    engine = size.parameters * weight / recipe.inference.tensor_parallel
    place = "GPU" if device == "cuda" else "process"
    turns = _turns(recipe, trainer, size.parameters * weight, engine) if recipe.placement == "colocated" else ""
    return (
        f"{_scaled(size.parameters)} parameters in {recipe.model.dtype}\n"
        f"trainer: {_bytes(trainer)} in each of {recipe.trainer.ranks} ranks for {divided} "
        f"(trainer.deepspeed may keep some on the host)\n"
        f"trainer, on top: {_activations(recipe, size)}\n"
        f"inference: {_bytes(engine)} in each engine {place} for weights; the KV cache comes on top\n"
        f"host: a checkpoint is read tensor by tensor; no process holds the whole model beside its own part{turns}"
    )


def _turns(recipe: Recipe, trainer: float, weights: float, engine: float) -> str:
    """What lies on a device that trainer and engine share, in each turn, and what waits on the host then."""
    weight_part = weights / (recipe.trainer.ranks if zero_stage(recipe.trainer, recipe.model.dtype) == 3 else 1)
    buckets = BUCKETS * recipe.weight_sync.bucket_mb * 2**20
    devices, engines = recipe.trainer.ranks, recipe.inference.tensor_parallel * recipe.inference.replicas
    return (
        f"\nplacement=colocated, on each device: {_bytes(trainer)} and activations while training, "
        f"{_bytes(weight_part + engine + buckets)} while pushing (weights twice, and buckets on their way), "
        f"{_bytes(engine)} and the KV cache while rolling out\n"
        f"placement=colocated, on the host: {_bytes(trainer * devices)} for the states of {devices} ranks, and "
        f"{_bytes(engine * engines)} for the engines' weights (with lora.push=adapter always, else during checkpoints)"
    )


def _states(recipe: Recipe, size: ModelSize, weight: int) -> tuple[float, str]:
    """The bytes of weights, gradients and optimizer states in each rank, and what they are in words."""
    stage, ranks = zero_stage(recipe.trainer, recipe.model.dtype), recipe.trainer.ranks
    weights = size.parameters * weight / (ranks if stage == 3 else 1)
    if recipe.lora is not None:
        return weights, "frozen weights; what the adapter needs comes on top, a few percent of that"
    states = size.parameters * MASTER_BYTES / (ranks if stage else 1)
    return weights + states, "weights, gradients and optimizer states"


def _activations(recipe: Recipe, size: ModelSize) -> str:
    """The memory that a full micro-batch keeps for the backward pass, in words. Tensors inside a layer are not
    estimated; their size depends on kernels and routing."""
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
        f"{'of these ' if wanted.shared else ''}{wanted.inference_gpus} inference) and {wanted.cpus} CPU cores",
        here,
    ]
    if recipe.run.ray_address is not None:
        return "\n".join([*lines, f"the Ray cluster at {recipe.run.ray_address} is asked when the run starts"])
    if recipe.run.hostfile is not None:
        return "\n".join([*lines, f"the machines in {recipe.run.hostfile} are asked when the run starts"])
    return "\n".join([*lines, *(missing_hardware(recipe, cpus=cpus, gpus=gpus) or ["can start here"])])


def _scaled(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
