"""Checks of a recipe's task sources and data files. They import the environments and rewards that the recipe names."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from rewards.compose import TOTAL, check_parts
from rewards.extension import load
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.config import FunctionSettings
from rewards.scorers.function import lacking, wants_environment
from rl.config import Recipe
from rl.recipe.checks import Problem
from rl.sft.config import ORACLE
from rollout.agent.source import Source
from rollout.contracts import Demonstrator, EnvironmentSpec
from rollout.envs.plain import lacking_for_reset, lives_in_a_process
from rollout.envs.registry import make_environment
from rollout.tasks.config import DatasetConfig, TaskSource
from rollout.tasks.conversation import read_demonstration, read_tools
from rollout.tasks.dataset import dataset_of, dataset_tasks, every_task
from rollout.tasks.files import SUFFIXES
from rollout.tasks.rows import NamedRow, Skipped, from_rows, is_of_files, local_files
from rollout.tasks.slices import parse_slice
from rollout.types import Split, Task

OTHER_DATA = (".txt", ".xlsx", ".pkl", ".gz", ".zst", ".zip")
"""Suffixes of files of data that nothing here reads. No Hugging Face name has them, so such a name is a mistake."""
FIRST_ROWS = 100
"""Rows of a streamed dataset that are checked before a run begins."""


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
    """The first problem with the rows of each dataset: those of files, or else those of folders and of the hub, which
    are read through `datasets`."""
    for key, dataset, check in _datasets(recipe):
        if (is_of_files(dataset.path) or bool(local_files(dataset.path))) == local:
            try:
                check(dataset)
            except ValueError as error:
                yield Problem(key, f"{key}: {error}")


Check = Callable[[DatasetConfig], object]
"""Reads all rows of a dataset, or the first ones of a streamed dataset. Raises ValueError where one is bad."""


def _datasets(recipe: Recipe) -> Iterator[tuple[str, DatasetConfig, Check]]:
    """Every dataset with its key in the recipe and its check."""
    for index, source in enumerate(recipe.tasks.sources):
        splits: tuple[tuple[Split, str], ...] = (
            ("train", "dataset"),
            ("eval", "eval_split" if source.eval_dataset is None else "eval_dataset"),
        )
        for split, name in splits if source.sets_apart else splits[:1]:
            if (dataset := dataset_of(source, split)) is not None:
                yield f"tasks.sources.{index}.{name}", dataset, partial(_check_tasks, source, split)
    for index, one in enumerate(recipe.sft.datasets if recipe.sft is not None else ()):
        key = f"sft.mixture.{index}.dataset" if recipe.sft and recipe.sft.mixture else "sft.dataset"
        yield key, one.dataset, _check_demonstrations


def _check_tasks(source: TaskSource, split: Split, dataset: DatasetConfig) -> None:
    try:
        spec = make_environment(source.environment)
    except ValueError:  # reported elsewhere
        return
    if dataset.streaming:
        tasks = list(islice(every_task(source, dataset, spec, Skipped(dataset.path)), FIRST_ROWS))
    else:
        tasks = dataset_tasks(source, spec, split).tasks
    for text in _lacking(source, tasks):
        raise ValueError(text)


def _lacking(source: TaskSource, tasks: Sequence[Task]) -> Iterator[str]:
    """For each function that asks for what none of these tasks has, words that say so."""
    columns = {name for task in tasks for name in (*task.payload, *task.metadata)}
    if text := lacking_for_reset(source.environment, columns):
        yield text
    for reward in source.rewards:
        if isinstance(reward, FunctionSettings) and reward.target is None:
            code = load({}, reward.name)
            if wants_environment(code) and not lives_in_a_process(source.environment):
                yield f"reward {reward.name}: it asks for 'environments', which environments in plain Python have only"
            elif wants_environment(code) and reward.whole_group:
                yield f"reward {reward.name}: it asks for 'environments', which are gone when a whole group has ended"
            elif text := lacking(code, columns):
                yield f"reward {reward.name}: {text}"


def _check_demonstrations(dataset: DatasetConfig) -> None:
    rows = from_rows(dataset, _check_demonstration, Skipped(dataset.path))
    deque(islice(rows, FIRST_ROWS) if dataset.streaming else rows, maxlen=0)


def _check_demonstration(row: NamedRow) -> None:
    read_demonstration(row.values, row.where)
    read_tools(row.values.get("tools"), f"{row.where}: field 'tools'")


def has_datasets(recipe: Recipe) -> bool:
    """Whether the recipe has tasks or demonstrations that are rows."""
    return any(True for _ in _datasets(recipe))


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
    if config.dataset is None:
        yield from _undemanding(config, key)
    if not source.parts:
        yield Problem(
            f"{key}.rewards", f"{key}.rewards: environment {config.label!r} has no rewards of its own; name some"
        )
    wants_oracle = recipe.sft is not None and recipe.sft.shown_by_oracle
    if wants_oracle and not isinstance(make_environment(config.environment), Demonstrator):
        yield Problem(
            "sft.dataset",
            f"sft.dataset={ORACLE}: environment {config.label!r} has no scripted oracle; use a dataset",
        )


def _undemanding(config: TaskSource, key: str) -> Iterator[Problem]:
    """Check the rewards of generated tasks with the first of them. One that cannot be generated is told at the start of
    a run."""
    spec = make_environment(config.environment)
    if type(spec).generate is EnvironmentSpec.generate:
        yield Problem(f"{key}.dataset", f"{key}.dataset: environment {config.label!r} generates no tasks: name rows")
        return
    if not any(isinstance(reward, FunctionSettings) and reward.target is None for reward in config.rewards):
        return
    try:
        task = spec.generate(0, 0, "train")
    except Exception:
        return
    for text in _lacking(config, [task]):
        yield Problem(f"{key}.rewards", f"{key}.rewards: {text}")


FETCHED = "models/"
"""Where the verb `model` puts what it fetches."""


def _files(recipe: Recipe) -> Iterator[Problem]:
    path = recipe.model.path
    if path.startswith(FETCHED) and not os.path.exists(path):
        name = path.removeprefix(FETCHED)
        yield Problem("model.path", f"model.path={path} is not there yet: run ./launch.sh model {name}")
    if _is_local_path(path) and not os.path.exists(path):
        yield _missing("model.path", path)
    for key, dataset, _ in _datasets(recipe):
        yield from _part(key, dataset)
        path, suffix = dataset.path, Path(dataset.path).suffix
        if suffix not in SUFFIXES and (suffix in OTHER_DATA or os.path.isfile(path)):
            yield Problem(
                key,
                f"{key}={path:.300} cannot be read; use a {', '.join(SUFFIXES)} file, a folder or a Hugging Face "
                "dataset name",
            )
        elif (_is_local_path(path) or is_of_files(path)) and not (local_files(path) or os.path.isdir(path)):
            yield _missing(key, path)


def _part(key: str, dataset: DatasetConfig) -> Iterator[Problem]:
    split = key if key.endswith("eval_split") else f"{key}.split"
    try:
        part = parse_slice(dataset.split)
    except ValueError as error:
        yield Problem(split, f"{split}: {error}")
        return
    if dataset.streaming and part.needs_length:
        yield Problem(
            split, f"{split}={dataset.split}: a stream has no length; give the bounds as row numbers, as in train[100:]"
        )


def _missing(key: str, path: str) -> Problem:
    return Problem(
        key, f"{key}={path:.300} does not exist; paths are looked up from {Path.cwd()} and from the repository"
    )


def _is_local_path(name: str) -> bool:
    """Whether a name can only be a path: a Hugging Face name is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1
