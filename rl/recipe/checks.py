"""Checks between the sections of a recipe. Each problem names the values and the fix.

Types, ranges and unknown keys are checked by the models (rl.config and what it imports); this module only compares
values. Task sources are checked in `rl.recipe.check_sources`. Neither module imports torch. rl.recipe.load and
rl.recipe.hardware ask for problems; rl.verbs.plan and rl.driver.drive show the remarks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.sandbox.packages import package_binds
from rl.config import Recipe
from rl.families.registry import family_of, known_family, local_config
from rl.recipe.library_names import deepspeed_settings, vllm_arguments
from rl.zero.deepspeed_config import check_expert_parallel, refuse_owned, refuse_unknown, zero_stage
from rollout.engine.arguments import check_engine_args
from rollout.transfer.registry import check_reach


@dataclass(frozen=True, slots=True)
class Problem:
    """`key` is the dotted key to point at; `text` says what is wrong and what to do."""

    key: str
    text: str


Check = Callable[[Recipe], Iterator[Problem]]


def cross_field_problems(recipe: Recipe) -> Iterator[Problem]:
    """Every problem between the sections of a recipe. The single values are valid already."""
    for check in _CHECKS:
        yield from check(recipe)


def remarks(recipe: Recipe) -> list[str]:
    """Warnings about settings that are allowed, but that the recipe's author probably does not intend."""
    stall, timeout = recipe.run.stall_s, recipe.rollout.trajectory_timeout_s
    found = []
    if stall <= timeout:
        found.append(
            f"run.stall_s={stall:g} is not longer than rollout.trajectory_timeout_s={timeout:g}: a slow group may be "
            "taken for a stall"
        )
    if recipe.placement == "colocated" and recipe.buffer.max_staleness:
        found.append(
            f"placement=colocated with buffer.max_staleness={recipe.buffer.max_staleness}: trajectories in flight wait "
            f"while the trainer has its turn, and rollout.trajectory_timeout_s={timeout:g} and "
            "inference.generate_timeout_s go on counting; with 0 none is in flight while it trains, but for "
            "checkpoints, before which the next groups begin"
        )
    if recipe.inference.late and recipe.run.ray_address is None:
        found.append(
            f"inference.min_replicas={recipe.inference.min_replicas} without run.ray_address: a Ray instance of the "
            "run's own gets no further machine, so engines without a place at first will hardly join"
        )
    if recipe.kl is not None and recipe.kl.place == "loss" and recipe.kl.estimator == "k1":
        found.append("kl.estimator=k1 in the loss has no gradient in expectation: use k2, k3 or unbiased there")
    return found


def _algorithm(recipe: Recipe) -> Iterator[Problem]:
    if recipe.advantage.name == "grpo" and recipe.rollout.group_size == 1:
        yield Problem(
            "rollout.group_size",
            "rollout.group_size=1 gives GRPO zero advantages; use >= 2 or algorithm=reinforce",
        )
    over, length = recipe.aggregation.over, recipe.aggregation.length
    if (over == "fixed") != (length is not None):
        yield Problem(
            "aggregation",
            f"aggregation.over={over} with aggregation.length={length}: fixed needs a length, and nothing else has one",
        )


def _adapter(recipe: Recipe) -> Iterator[Problem]:
    lora, kl = recipe.lora, recipe.kl
    if kl is not None and lora is None:
        yield Problem(
            "kl",
            "kl keeps the policy near a reference policy, which is the model without its adapter: set lora, or leave "
            "kl out. (A second copy of the whole model is not kept.)",
        )
    if kl is not None and kl.place == "reward" and kl.estimator == "unbiased":
        yield Problem(
            "kl.estimator",
            "kl.estimator=unbiased has its factor for the gradient, and in the reward there is none: use k1 there, or "
            "kl.place=loss",
        )
    if kl is not None and kl.place == "loss" and kl.credit is not None:
        yield Problem("kl.credit", f"kl.credit={kl.credit} is for kl.place=reward; remove it, or change the place")
    if lora is not None and lora.dora and lora.push == "adapter":
        yield Problem("lora.push", "lora.push=adapter with lora.dora: vLLM refuses DoRA's adapters; use merged")


def _adapter_on_cpu(recipe: Recipe) -> Iterator[Problem]:
    config = local_config(recipe.model.path)
    if recipe.lora is None or recipe.lora.push != "adapter" or config is None or "model_type" not in config:
        return
    try:
        experts = family_of(config, recipe.model.family).experts(config)
    except ValueError:
        return  # `_model` reports it
    if experts:
        yield Problem(
            "lora.push",
            "lora.push=adapter: vLLM computes no adapters of models with experts on CPU; use lora.push=merged",
        )


def _zero(recipe: Recipe) -> Iterator[Problem]:
    try:
        zero_stage(recipe.trainer, recipe.model.dtype)
    except ValueError as error:
        yield Problem("trainer.zero_stage", str(error))


def _placement(recipe: Recipe) -> Iterator[Problem]:
    try:
        check_reach(recipe.weight_sync.transport.name, recipe.placement)
    except ValueError as error:
        yield Problem("weight_sync.transport", str(error))
    if recipe.inference.late and recipe.weight_sync.transport.name == "shm":
        yield Problem(
            "weight_sync.transport",
            "weight_sync.transport=shm cannot reach engines that join later (inference.min_replicas); use auto or gloo",
        )
    if recipe.placement == "split":
        return
    if recipe.inference.late:
        yield Problem(
            "inference.min_replicas",
            "inference.min_replicas with placement=colocated: engines have the devices of trainer ranks; leave it out",
        )
    if recipe.weight_sync.cache_policy == "keep":
        yield Problem(
            "weight_sync.cache_policy",
            "weight_sync.cache_policy=keep with placement=colocated: the KV cache is dropped at each turn of the "
            "trainer; use recompute",
        )
    inference, ranks = recipe.inference, recipe.trainer.ranks
    if len({*inference.widths}) > 1:
        yield Problem(
            "inference.tensor_parallel",
            f"{inference.told} with placement=colocated: engines that share the trainer's devices have the same width",
        )
    if sum(inference.widths) > ranks:
        yield Problem(
            "inference.replicas",
            f"{inference.told} with "
            f"placement=colocated: engines share the devices of trainer.ranks={ranks}; use no more than those",
        )


def _sampling(recipe: Recipe) -> Iterator[Problem]:
    sampling, rollout = recipe.rollout.sampling, recipe.rollout
    for key, value, off in (("top_p", sampling.top_p, 1.0), ("top_k", sampling.top_k, 0)):
        if value != off:
            yield Problem(
                f"rollout.sampling.{key}",
                f"rollout.sampling.{key}={value} cuts the distribution in a way the trainer cannot mirror; use {off} "
                f"(off). An evaluation may cut it: eval.{key}",
            )
    if sampling.max_tokens >= rollout.max_context:
        yield Problem(
            "rollout.sampling.max_tokens",
            f"rollout.sampling.max_tokens={sampling.max_tokens} leaves no room for a prompt in "
            f"rollout.max_context={rollout.max_context}; lower the first or raise the second",
        )


def _deadlines(recipe: Recipe) -> Iterator[Problem]:
    turn, trajectory = recipe.inference.generate_timeout_s, recipe.rollout.trajectory_timeout_s
    if turn is not None and turn >= trajectory:
        yield Problem(
            "inference.generate_timeout_s",
            f"inference.generate_timeout_s={turn:g} never comes before rollout.trajectory_timeout_s={trajectory:g} has "
            "passed; lower it, or leave it out",
        )


def _batching(recipe: Recipe) -> Iterator[Problem]:
    budget, context = recipe.trainer.token_budget, recipe.rollout.max_context
    if budget < context:
        yield Problem(
            "trainer.token_budget",
            f"trainer.token_budget={budget} is smaller than rollout.max_context={context}, and a trajectory is never "
            f"split; use trainer.token_budget>={context}",
        )


def _parallelism(recipe: Recipe) -> Iterator[Problem]:
    ranks, experts = recipe.trainer.ranks, recipe.trainer.expert_parallel
    if ranks % experts:
        divisors = [n for n in range(1, min(ranks, 1024) + 1) if ranks % n == 0]
        yield Problem(
            "trainer.expert_parallel",
            f"trainer.expert_parallel={experts} does not divide trainer.ranks={ranks}; use one of {divisors}",
        )


def _model(recipe: Recipe) -> Iterator[Problem]:
    """Compare with the model's config.json if that is a local file. If not, the run's processes find the problems."""
    config = local_config(recipe.model.path)
    if config is None:
        return
    longest, context = config.get("max_position_embeddings"), recipe.rollout.max_context
    if isinstance(longest, int) and longest < context and not _stretched(config):
        yield Problem(
            "rollout.max_context",
            f"rollout.max_context={context} is more than the model's max_position_embeddings={longest}; "
            f"use rollout.max_context<={longest}",
        )
    if "model_type" in config and recipe.trainer.ranks % recipe.trainer.expert_parallel == 0:
        try:
            experts = family_of(config, recipe.model.family).experts(config)
            check_expert_parallel(recipe.trainer, experts)
        except ValueError as error:
            yield Problem("trainer.expert_parallel", str(error))


def _stretched(config: dict[str, Any]) -> bool:
    """Whether the rotary embedding is scaled. If it is, vLLM checks the context length, not we."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return rope.get("rope_type", rope.get("type", "default")) != "default"


def _renderer(recipe: Recipe) -> Iterator[Problem]:
    """Refuse a missing chat format. Loading has filled in that of the model's family already, if there is one."""
    if recipe.model.renderer is not None:
        return
    model = recipe.model
    try:
        family = known_family(model.path, model.family)
    except ValueError:
        return  # `_model` reports it
    why = (
        f"the family of {model.path} has none of its own"
        if family is not None
        else f"{model.path} does not tell its family: no config.json of it is on this machine"
    )
    yield Problem("model.renderer", f"model.renderer, the chat format, is not set, and {why}; name one")


def _device(recipe: Recipe) -> Iterator[Problem]:
    if recipe.run.device == "cpu":
        yield from cpu_problems(recipe)
    if recipe.run.device == "cuda":
        yield from gpu_problems(recipe)


def gpu_problems(recipe: Recipe) -> Iterator[Problem]:
    """Problems of a recipe on GPUs. rl.recipe.hardware asks for them too, when `auto` turns out to mean cuda."""
    wanted, ranks = sum(recipe.inference.widths), recipe.trainer.ranks
    if recipe.placement == "colocated" and wanted < ranks:
        yield Problem(
            "inference.replicas",
            f"{recipe.inference.told} with placement=colocated: engines want all GPUs of "
            f"trainer.ranks={ranks}; use as many",
        )
    if recipe.inference.kv_cache_gib is not None:
        yield Problem(
            "inference.kv_cache_gib",
            f"inference.kv_cache_gib={recipe.inference.kv_cache_gib:g} is for engines on CPU; on GPUs set "
            "inference.engine_args.gpu_memory_utilization",
        )


def cpu_problems(recipe: Recipe) -> Iterator[Problem]:
    """Problems of a recipe on CPU. rl.recipe.hardware asks for them too, when `auto` turns out to mean cpu."""
    yield from _adapter_on_cpu(recipe)
    if recipe.model.dtype != "float32":
        yield Problem(
            "model.dtype",
            f"model.dtype={recipe.model.dtype} on CPU: engine and trainer agree on CPUs in float32 only; "
            "use model.dtype=float32",
        )
    if max(recipe.inference.widths) != 1:
        yield Problem(
            "inference.tensor_parallel",
            f"{recipe.inference.told} on CPU: an engine is one "
            "process there; use inference.tensor_parallel=1 and more inference.replicas",
        )
    if recipe.inference.engine_args.get("enable_chunked_prefill"):
        yield Problem(
            "inference.engine_args.enable_chunked_prefill",
            "inference.engine_args.enable_chunked_prefill=true on CPU: vLLM would rewind a request's random generator "
            "there, which torch can't; remove it",
        )
    if recipe.weight_sync.transport.name in ("nccl", "ipc"):
        yield Problem(
            "weight_sync.transport",
            f"weight_sync.transport={recipe.weight_sync.transport.name} needs GPUs; on CPU use "
            "weight_sync.transport=auto",
        )


def _passed_through(recipe: Recipe) -> Iterator[Problem]:
    for name, value in recipe.inference.engine_args.items():
        try:
            check_engine_args({name: value}, vllm_arguments())
        except ValueError as error:
            yield Problem(f"inference.engine_args.{name}", str(error))
    try:
        refuse_owned(recipe.trainer.deepspeed)
        if recipe.trainer.deepspeed:
            refuse_unknown(recipe.trainer.deepspeed, deepspeed_settings())
    except ValueError as error:
        yield Problem("trainer.deepspeed", str(error))


def _sandbox(recipe: Recipe) -> Iterator[Problem]:
    try:
        package_binds(recipe.sandbox.packages, recipe.sandbox.environment)
    except ValueError as error:
        key = "sandbox.packages" if recipe.sandbox.environment is None else "sandbox.environment"
        yield Problem(key, str(error))


def _resume(recipe: Recipe) -> Iterator[Problem]:
    if recipe.resume != "never" and recipe.run.dir is None:
        runs = sorted(Path("runs").glob(f"{recipe.run.name}-*"), key=lambda path: path.stat().st_mtime)
        newest = f", for example run.dir={runs[-1]}" if runs else ""
        yield Problem(
            "resume",
            f"resume={recipe.resume} needs to know which run: set run.dir to the directory to go on in{newest}",
        )


_CHECKS: tuple[Check, ...] = (
    _algorithm,
    _adapter,
    _zero,
    _placement,
    _sampling,
    _deadlines,
    _batching,
    _parallelism,
    _model,
    _renderer,
    _device,
    _passed_through,
    _sandbox,
    _resume,
)
