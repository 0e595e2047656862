"""Checks of a recipe's task sources and data files. They import the environments and rewards that the recipe names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rewards.compose import TOTAL, check_parts
from rewards.sandbox.sandbox import Sandbox
from rl.config import Recipe
from rl.recipe.checks import Problem
from rl.sft.config import ORACLE
from rollout.agent.source import Source
from rollout.contracts import Demonstrator
from rollout.envs.registry import make_environment
from rollout.tasks.config import TaskSource
from rollout.tasks.conversation import read_demonstration, read_tools
from rollout.tasks.dataset import dataset_tasks
from rollout.tasks.rows import read_rows
from rollout.types import Split

DATA_SUFFIXES = (".jsonl", ".parquet")
"""Suffixes of the files that rollout.tasks.rows reads."""
OTHER_DATA = (".json", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zip")
"""Suffixes of files that it does not read. No Hugging Face name has them, so such a name is a mistake."""


def source_problems(recipe: Recipe) -> Iterator[Problem]:
    """Every problem with `tasks.sources` and with the files that a recipe names."""
    for index, source in enumerate(recipe.tasks.sources):
        yield from _label(recipe, index)
        yield from _scoring(recipe, source, f"tasks.sources.{index}")
    missing = list(_files(recipe))
    yield from missing
    if not missing:
        yield from row_problems(recipe, local=True)


def row_problems(recipe: Recipe, *, local: bool) -> Iterator[Problem]:
    """The first problem with the rows of each dataset: those of files, or else those of Hugging Face."""
    for key, dataset, check in _row_checks(recipe):
        if _is_local_path(dataset) == local:
            try:
                check()
            except ValueError as error:
                yield Problem(key, f"{key}: {error}")


def _row_checks(recipe: Recipe) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """For each dataset its key in the recipe, its name, and what reads all of its rows."""
    for index, source in enumerate(recipe.tasks.sources):
        if source.dataset is not None:
            key = f"tasks.sources.{index}"
            yield f"{key}.dataset", source.dataset, partial(_check_tasks, source, "train")
            if source.eval_dataset is not None or source.eval_split is not None:
                dataset = source.eval_dataset or source.dataset
                yield f"{key}.eval_dataset", dataset, partial(_check_tasks, source, "eval")
    if recipe.sft is not None and recipe.sft.dataset != ORACLE:
        yield "sft.dataset", recipe.sft.dataset, partial(_check_demonstrations, recipe.sft.dataset)


def _check_tasks(source: TaskSource, split: Split) -> None:
    try:
        spec = make_environment(source.environment)
    except ValueError:  # reported elsewhere
        return
    dataset_tasks(source, spec, split)


def _check_demonstrations(dataset: str) -> None:
    for row in read_rows(dataset):
        read_demonstration(row.values, row.where)
        read_tools(row.values.get("tools"), f"{row.where}: field 'tools'")


def needs_sandbox(recipe: Recipe) -> bool:
    """Whether an environment or a reward of the recipe runs code in a sandbox."""
    sandbox = Sandbox(recipe.sandbox)
    return any(Source(source, sandbox).uses_sandbox for source in recipe.tasks.sources)


def _label(recipe: Recipe, index: int) -> Iterator[Problem]:
    labels = [source.label for source in recipe.tasks.sources]
    if labels[index] in labels[:index]:
        yield Problem(
            f"tasks.sources.{index}",
            f"tasks.sources.{index} is called {labels[index]!r} like another source; set tasks.sources.{index}.name",
        )
    if set(labels[index]) & set("/<>"):
        yield Problem(
            f"tasks.sources.{index}.name",
            f"tasks.sources.{index}.name={labels[index]!r} names metrics, which have no '/', '<' or '>'; use another",
        )


def _scoring(recipe: Recipe, config: TaskSource, key: str) -> Iterator[Problem]:
    try:
        source = Source(config, Sandbox(recipe.sandbox))
    except ValueError as error:
        yield Problem(f"{key}.environment", f"{key}: {error}")
        return
    twice = {part for part in source.parts if source.parts.count(part) > 1}
    if twice:
        yield Problem(f"{key}.rewards", f"{key}.rewards: the part {min(twice)!r} is given twice; leave one out")
    for name, named, known in (
        ("weights", config.weights, source.parts),
        ("success", config.success, (*source.parts, TOTAL)),
    ):
        try:
            check_parts(named, known)
        except ValueError as error:
            yield Problem(f"{key}.{name}", f"{key}.{name}: {error}")
    if source.parts and not any(config.weights.get(part, 1.0) for part in source.parts):
        yield Problem(
            f"{key}.weights",
            f"{key}.weights gives 0 to every reward part of {config.label!r} ({', '.join(source.parts)}), so all its "
            "rewards are 0; raise one of them",
        )
    if not source.parts:
        yield Problem(
            f"{key}.rewards", f"{key}.rewards: environment {config.label!r} has no rewards of its own; name some"
        )
    wants_oracle = recipe.sft is not None and recipe.sft.dataset == ORACLE
    if wants_oracle and not isinstance(make_environment(config.environment), Demonstrator):
        yield Problem(
            "sft.dataset",
            f"sft.dataset={ORACLE}: environment {config.label!r} has no scripted oracle; use a dataset",
        )


FETCHED = "models/"
"""Where the verb `model` puts what it fetches."""


def _files(recipe: Recipe) -> Iterator[Problem]:
    datasets = []
    if recipe.sft is not None and recipe.sft.dataset != ORACLE:
        datasets.append(("sft.dataset", recipe.sft.dataset))
    for index, source in enumerate(recipe.tasks.sources):
        for name, value in (("dataset", source.dataset), ("eval_dataset", source.eval_dataset)):
            if value is not None:
                datasets.append((f"tasks.sources.{index}.{name}", value))
    for key, value in datasets:
        if Path(value).suffix not in DATA_SUFFIXES and (Path(value).suffix in OTHER_DATA or os.path.isfile(value)):
            yield Problem(
                key,
                f"{key}={value:.300} cannot be read; use a {' or '.join(DATA_SUFFIXES)} file or a Hugging Face "
                "dataset name",
            )
    if recipe.model.path.startswith(FETCHED) and not os.path.exists(recipe.model.path):
        name = recipe.model.path.removeprefix(FETCHED)
        yield Problem("model.path", f"model.path={recipe.model.path} is not there yet: run ./launch.sh model {name}")
    for key, value in [("model.path", recipe.model.path), *datasets]:
        if _is_local_path(value) and not os.path.exists(value):
            yield Problem(
                key, f"{key}={value:.300} does not exist; paths are looked up from {Path.cwd()} and from the repository"
            )


def _is_local_path(name: str) -> bool:
    """Whether a name can only be a path: a Hugging Face name is `name` or `owner/name`, without a data suffix."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in DATA_SUFFIXES
