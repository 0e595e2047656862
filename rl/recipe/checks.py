"""What one section of a recipe demands of another. Each problem names the values and the fix.

Types, ranges and unknown keys are the models' business (rl.config and its neighbours); this module only compares.
It looks at the file system for paths the recipe names, and imports no torch. Called by rl.recipe.load.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.compose import check_weights, compose
from rl.config import Recipe
from rl.learner.deepspeed_config import deepspeed_config, refuse_owned
from rollout.contracts import EnvironmentSpec
from rollout.engine.arguments import check_engine_args
from rollout.envs.registry import ENVIRONMENTS

DATA_SUFFIXES = (".jsonl", ".parquet")
"""What rollout.tasks.rows reads from a file."""
OTHER_DATA = (".json", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zip")
"""Suffixes that no Hugging Face name has either."""


@dataclass(frozen=True, slots=True)
class Problem:
    """`key` is the dotted key to point at; `text` says what is wrong and what to do."""

    key: str
    text: str


def problems(recipe: Recipe) -> list[Problem]:
    """Every cross-field problem of a recipe whose single values are already valid."""
    return [problem for check in _CHECKS for problem in check(recipe)]


def _algorithm(recipe: Recipe) -> Iterator[Problem]:
    if recipe.algorithm.name == "grpo" and recipe.rollout.group_size == 1:
        yield Problem(
            "rollout.group_size",
            "rollout.group_size=1 gives GRPO zero advantages; use >= 2 or algorithm.name=reinforce",
        )


def _sampling(recipe: Recipe) -> Iterator[Problem]:
    sampling, rollout = recipe.rollout.sampling, recipe.rollout
    if sampling.top_p != 1:
        yield Problem(
            "rollout.sampling.top_p",
            f"rollout.sampling.top_p={sampling.top_p} cuts the distribution in a way the trainer cannot mirror; "
            "use 1.0 (off)",
        )
    if sampling.top_k != 0:
        yield Problem(
            "rollout.sampling.top_k",
            f"rollout.sampling.top_k={sampling.top_k} cuts the distribution in a way the trainer cannot mirror; "
            "use 0 (off)",
        )
    if sampling.max_tokens >= rollout.max_context:
        yield Problem(
            "rollout.sampling.max_tokens",
            f"rollout.sampling.max_tokens={sampling.max_tokens} leaves no room for a prompt in "
            f"rollout.max_context={rollout.max_context}; lower the first or raise the second",
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
        divisors = [n for n in range(1, ranks + 1) if ranks % n == 0]
        yield Problem(
            "trainer.expert_parallel",
            f"trainer.expert_parallel={experts} does not divide trainer.ranks={ranks}; use one of {divisors}",
        )


def _model(recipe: Recipe) -> Iterator[Problem]:
    """What a model's config.json forbids, where that is a local file; else the processes of the run find out."""
    config = _local_config(recipe.model.path)
    if config is None:
        return
    longest, context = config.get("max_position_embeddings"), recipe.rollout.max_context
    if isinstance(longest, int) and longest < context and not _stretched(config):
        yield Problem(
            "rollout.max_context",
            f"rollout.max_context={context} is more than the model's max_position_embeddings={longest}; "
            f"use rollout.max_context<={longest}",
        )
    trainer = recipe.trainer.model_copy(update={"deepspeed": {}})  # `_passed_through` speaks of those keys
    if "model_type" in config and trainer.ranks % trainer.expert_parallel == 0:
        try:
            deepspeed_config(config, trainer, trainer.optimizer, recipe.model.dtype, "cpu")
        except ValueError as error:
            yield Problem("trainer.expert_parallel", str(error))


def _local_config(model: str) -> dict[str, Any] | None:
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _stretched(config: dict[str, Any]) -> bool:
    """Whether the rotary embedding is scaled: how far it then reaches is vLLM's to say."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return rope.get("rope_type", rope.get("type", "default")) != "default"


def _device(recipe: Recipe) -> Iterator[Problem]:
    if recipe.run.device == "cpu":
        yield from cpu_problems(recipe)


def cpu_problems(recipe: Recipe) -> Iterator[Problem]:
    """What keeps a recipe from running on CPU; rl.verbs.plan asks too, when `auto` turns out to mean cpu."""
    if recipe.model.dtype != "float32":
        yield Problem(
            "model.dtype",
            f"model.dtype={recipe.model.dtype} on CPU: engine and trainer agree on CPUs in float32 only; "
            "use model.dtype=float32",
        )
    if recipe.inference.tensor_parallel != 1:
        yield Problem(
            "inference.tensor_parallel",
            f"inference.tensor_parallel={recipe.inference.tensor_parallel} on CPU: an engine is one "
            "process there; use inference.tensor_parallel=1 and more inference.replicas",
        )
    if recipe.inference.engine_args.get("enable_chunked_prefill"):
        yield Problem(
            "inference.engine_args.enable_chunked_prefill",
            "inference.engine_args.enable_chunked_prefill=true on CPU: vLLM would rewind a request's random generator "
            "there, which torch can't; remove it",
        )
    if recipe.weight_sync.transport == "nccl":
        yield Problem(
            "weight_sync.transport",
            "weight_sync.transport=nccl needs GPUs; on CPU use weight_sync.transport=auto",
        )


def _passed_through(recipe: Recipe) -> Iterator[Problem]:
    for name, value in recipe.inference.engine_args.items():
        try:
            check_engine_args({name: value})
        except ValueError as error:
            yield Problem(f"inference.engine_args.{name}", str(error))
    try:
        refuse_owned(recipe.trainer.deepspeed)
    except ValueError as error:
        yield Problem("trainer.deepspeed", str(error))


def _resume(recipe: Recipe) -> Iterator[Problem]:
    if recipe.resume != "never" and recipe.run.dir is None:
        yield Problem(
            "resume",
            f"resume={recipe.resume} needs to know which run: set run.dir to the directory to go on in",
        )


def _environments(recipe: Recipe) -> Iterator[Problem]:
    for index, source in enumerate(recipe.tasks.sources):
        if source.environment not in ENVIRONMENTS:
            known = ", ".join(repr(name) for name in sorted(ENVIRONMENTS))
            yield Problem(
                f"tasks.sources.{index}.environment",
                f"tasks.sources.{index}.environment={source.environment!r} is not an environment; use one of {known}",
            )


def _chosen_environments(recipe: Recipe) -> list[EnvironmentSpec]:
    """Each once; a name that is none has a problem of its own."""
    names = dict.fromkeys(source.environment for source in recipe.tasks.sources)
    return [ENVIRONMENTS[name] for name in names if name in ENVIRONMENTS]


def _reward_weights(recipe: Recipe) -> Iterator[Problem]:
    try:
        check_weights(
            recipe.rewards.weights, {part for spec in _chosen_environments(recipe) for part in spec.reward_parts}
        )
    except ValueError as error:
        yield Problem("rewards.weights", str(error))


def _success(recipe: Recipe) -> Iterator[Problem]:
    """A success that no trajectory can reach. A reward part is at most 1."""
    weights, wanted = recipe.rewards.weights, recipe.eval.success_reward
    for spec in _chosen_environments(recipe):
        weighed = {part: weights.get(part, 1.0) for part in spec.reward_parts}
        best = compose({part: float(weight > 0) for part, weight in weighed.items()}, weighed)
        if not any(weighed.values()):
            yield Problem(
                "rewards.weights",
                f"rewards.weights gives 0 to every reward part of environment {spec.name!r} "
                f"({', '.join(weighed)}), so all its rewards are 0; raise one of them",
            )
        elif best < wanted:
            yield Problem(
                "eval.success_reward",
                f"eval.success_reward={wanted} is more than environment {spec.name!r} can give: its parts reach 1 "
                f"each, which rewards.weights makes {best}; use eval.success_reward<={best} or raise the weights",
            )


def _files(recipe: Recipe) -> Iterator[Problem]:
    datasets = []
    if recipe.sft is not None and recipe.sft.dataset != "oracle":
        datasets.append(("sft.dataset", recipe.sft.dataset))
    for index, source in enumerate(recipe.tasks.sources):
        if source.dataset is not None:
            datasets.append((f"tasks.sources.{index}.dataset", source.dataset))
    for key, value in datasets:
        if Path(value).suffix not in DATA_SUFFIXES and (Path(value).suffix in OTHER_DATA or Path(value).is_file()):
            yield Problem(
                key,
                f"{key}={value} cannot be read; use a {' or '.join(DATA_SUFFIXES)} file or a Hugging Face dataset name",
            )
    for key, value in [("model.path", recipe.model.path), *datasets]:
        if _is_local_path(value) and not Path(value).exists():
            yield Problem(
                key, f"{key}={value} does not exist; paths are looked up from {Path.cwd()} and from the repository"
            )


def _is_local_path(name: str) -> bool:
    """Whether a name can only be a path: a Hugging Face name is `name` or `owner/name`, without a data suffix."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in DATA_SUFFIXES


_CHECKS: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    _algorithm,
    _sampling,
    _batching,
    _parallelism,
    _model,
    _device,
    _passed_through,
    _resume,
    _environments,
    _reward_weights,
    _success,
    _files,
)
