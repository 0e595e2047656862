"""A recipe file, with `a.b=c` overrides, as one validated `Recipe`; and a `Recipe` as the config.yaml of its run.

Every problem is reported at once, each with the file and line (or the override) it comes from, the value, and the
nearest key or the fix. Called by rl.cli; imports no torch, so a typing mistake is answered at once.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rewards.strict import StrictModel
from rl.config import Recipe
from rl.paths import REPOSITORY
from rl.recipe import marked_yaml
from rl.recipe.checks import problems
from rl.recipe.marked_yaml import Path


class RecipeError(ValueError):
    """The recipe cannot be used. `messages` holds one line for each problem."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = tuple(messages)


def load_recipe(path: str | FilePath, overrides: Sequence[str] = ()) -> Recipe:
    """Read `path`, apply `key=value` overrides in order, validate.

    An override's value is YAML. A bare string for a section with a short form (`model=PATH`) sets that one field and
    keeps the rest. A relative model or dataset path is looked up from the working directory, then from the repository;
    found, it becomes absolute. A path may begin with `~`. Raises RecipeError, naming every problem.
    """
    try:
        text = FilePath(path).read_text(encoding="utf-8")
        marked = marked_yaml.parse(text)
    except marked_yaml.YamlError as error:
        raise RecipeError([f"{path}:{error.line}: {error}"]) from None
    except UnicodeDecodeError as error:
        raise RecipeError([f"{path}: not UTF-8 text: {error.reason} at byte {error.start}"]) from None
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read: {error.strerror}"]) from None
    if not isinstance(marked.data, dict):
        raise RecipeError([f"{path}:1: a recipe is a mapping of sections (model:, tasks:, trainer: …)"])
    origins = {where: f"{path}:{line}" for where, line in marked.lines.items()}
    data: dict[str, Any] = _expand_shorthands(marked.data)
    mistakes = [message for override in overrides for message in _apply(override, data, origins)]
    if mistakes:
        raise RecipeError(mistakes)
    return _validate(data, origins)


def save_resolved(recipe: Recipe, path: str | FilePath) -> None:
    """Write `resolved_text`; `load_recipe(path)` gives an equal Recipe."""
    FilePath(path).write_text(resolved_text(recipe), encoding="utf-8")


def resolved_text(recipe: Recipe) -> str:
    """The recipe as YAML, every key with defaults included, under its batch arithmetic as a comment."""
    arithmetic = "".join(f"#   {name}: {value}\n" for name, value in derived(recipe).items())
    return (
        "# The resolved recipe of this run: every key, defaults included. It can be run again as it is.\n"
        f"# What follows from it:\n{arithmetic}{marked_yaml.dump(recipe.model_dump(mode='json'))}"
    )


def derived(recipe: Recipe) -> dict[str, int]:
    """The batch arithmetic that follows from the recipe and is therefore never asked for."""
    rollout, trainer, inference = recipe.rollout, recipe.trainer, recipe.inference
    trajectories = trainer.groups_per_step * rollout.group_size
    full_length_per_micro_batch = max(1, trainer.token_budget // rollout.max_context)
    return {
        "trajectories_per_step": trajectories,
        "tokens_per_step_max": trajectories * rollout.max_context,
        "micro_batches_per_rank_max": -(-trajectories // (trainer.ranks * full_length_per_micro_batch)),
        "gate_groups": trainer.groups_per_step * (1 + recipe.buffer.max_staleness),
        "trajectories_in_flight_max": rollout.workers * rollout.groups_per_worker * rollout.group_size,
        "trajectories_total": trajectories * recipe.run.steps,
        "training_devices": trainer.ranks,
        "inference_devices": inference.replicas * inference.tensor_parallel,
    }


def _validate(data: dict[str, Any], origins: Mapping[Path, str]) -> Recipe:
    try:
        # JSON mode is strict about types and still reads a list as a tuple.
        recipe = Recipe.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        details = error.errors()
        # A tuple with one bad entry is also reported as too short; the entry's own message is the useful one.
        deeper = {d["loc"][:end] for d in details for end in range(len(d["loc"]))}
        raise RecipeError(
            [_describe(d, origins) for d in details if not (d["type"] == "too_short" and d["loc"] in deeper)]
        ) from None
    recipe = _resolve_paths(recipe)
    found = [f"{_origin(_parts(p.key), origins)}: {p.text}" for p in problems(recipe)]
    if found:
        raise RecipeError(found)
    return recipe


def _apply(override: str, data: dict[str, Any], origins: dict[Path, str]) -> list[str]:
    """Write one override into `data` and `origins`; returns the messages of what is wrong with it."""
    label = f"override {override}"
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        return [f"{label}: write it as key=value, for example run.steps=10"]
    try:
        value = marked_yaml.parse(text).data
    except marked_yaml.YamlError as error:
        return [f"{label}: {error}"]
    path = _parts(name.strip())
    if message := _unknown(path):
        return [f"{label}: {message}"]
    shorthand = _shorthand_at(path)
    if shorthand and isinstance(value, str):
        path = (*path, shorthand)
    target: Any = data
    for depth, part in enumerate(path[:-1]):
        if isinstance(target, dict) and target.get(part) is None:
            # A section that the recipe leaves out, or sets to null, is opened by the first override in it.
            target[part] = {}
            origins[path[: depth + 1]] = label
        target = _child(target, part)
        if not isinstance(target, dict | list):
            return [f"{label}: {_dotted(path[: depth + 1])} is not there to be changed"]
    if isinstance(target, list) and not (isinstance(path[-1], int) and path[-1] < len(target)):
        return [f"{label}: {_dotted(path[:-1])} has {len(target)} entries, counted from 0"]
    target[path[-1]] = _expand_shorthands({path[-1]: value}, path[:-1])[path[-1]]
    for where in [where for where in origins if where[: len(path)] == path]:
        del origins[where]
    origins[path] = label
    return []


def _child(parent: Any, part: str | int) -> Any:
    if isinstance(parent, list) and not (isinstance(part, int) and part < len(parent)):
        return None
    return parent[part]


def _expand_shorthands(data: dict[Any, Any], base: Path = ()) -> dict[Any, Any]:
    expanded = {}
    for key, value in data.items():
        shorthand = _shorthand_at((*base, key))
        expanded[key] = {shorthand: value} if shorthand and isinstance(value, str) else value
    return expanded


def _shorthand_at(path: Path) -> str | None:
    model = _model_at(path)
    return model.shorthand if model else None


def _model_at(path: Path) -> type[StrictModel] | None:
    """The section model that `path` names; None for a plain value, free-form content or an unknown path."""
    model: type[StrictModel] | None = Recipe
    for part in path:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        model = section_of(model.model_fields[part].annotation)
    return model


def section_of(annotation: Any) -> type[StrictModel] | None:
    """The section model inside `Section`, `Section | None` or `tuple[Section, ...]`."""
    candidates = (annotation, *get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, StrictModel)), None)


def _unknown(path: Path) -> str | None:
    """What is wrong with a dotted path, judged by the models alone."""
    model: type[StrictModel] | None = Recipe
    for depth, part in enumerate(path):
        if model is None or isinstance(part, int):
            continue
        if part not in model.model_fields:
            return _unknown_key(path[:depth], part)
        annotation = model.model_fields[part].annotation
        model = section_of(annotation)
        if model is None and depth + 1 < len(path) and not _is_container(annotation):
            return f"{_dotted(path[: depth + 1])} is a single value and has no key {path[depth + 1]!r}"
    return None


def _is_container(annotation: Any) -> bool:
    return get_origin(annotation) in (dict, tuple)


def _unknown_key(parent: Path, key: str) -> str:
    """Names the nearest key: the same word in another section, else the most similar one in this section."""
    model = _model_at(parent) or Recipe
    elsewhere = [name for name in _leaf_names(Recipe) if name.rpartition(".")[2] == key]
    similar = difflib.get_close_matches(key, list(model.model_fields), n=1, cutoff=0.0)
    nearest = elsewhere[0] if elsewhere else _dotted((*parent, similar[0]))
    return f"unknown key {_dotted((*parent, key))!r}; the nearest is {nearest!r}"


def _leaf_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield prefix + name
        else:
            yield from _leaf_names(section, f"{prefix}{name}.")


def _describe(detail: ErrorDetails, origins: Mapping[Path, str]) -> str:
    path: Path = detail["loc"]
    origin = _origin(path, origins)
    if detail["type"] == "extra_forbidden":
        return f"{origin}: {_unknown_key(path[:-1], str(path[-1]))}"
    if detail["type"] == "missing" and isinstance(path[-1], int):
        return f"{origin}: {_dotted(path[:-1])} has too few entries"
    if detail["type"] == "missing":
        return f"{origin}: {_dotted(path[:-1]) or 'the recipe'} needs the key {str(path[-1])!r}"
    section = _model_at(path)
    expected = detail["msg"].replace("Input should be ", "expected ", 1)
    if section is not None and detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        expected = f"expected a mapping with the keys {', '.join(section.model_fields)}"
    quote = detail["type"] == "string_type" and isinstance(detail["input"], bool | int | float)
    hint = " (put it in quotes)" if quote else ""
    return f"{origin}: {_dotted(path)}: {expected}, got {json.dumps(detail['input'], ensure_ascii=False)}{hint}"


def _origin(path: Path, origins: Mapping[Path, str]) -> str:
    """Where a value was written, or the closest enclosing section that was."""
    return next(origins[path[:end]] for end in range(len(path), -1, -1) if path[:end] in origins)


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def _parts(dotted: str) -> Path:
    return tuple(int(part) if part.isdigit() else part for part in dotted.split("."))


def _resolve_paths(recipe: Recipe) -> Recipe:
    """Make local model and dataset paths absolute, so that no process depends on its working directory. Reads `~`."""
    places = {"dir": _home(recipe.run.dir), "cache_dir": _home(recipe.run.cache_dir)}
    sources = tuple(s.model_copy(update={"dataset": _located(s.dataset)}) for s in recipe.tasks.sources)
    sft = recipe.sft and recipe.sft.model_copy(update={"dataset": _located(recipe.sft.dataset)})
    return recipe.model_copy(
        update={
            "run": recipe.run.model_copy(update=places),
            "model": recipe.model.model_copy(update={"path": _located(recipe.model.path)}),
            "tasks": recipe.tasks.model_copy(update={"sources": sources}),
            "sft": sft,
        }
    )


def _home(name: str | None) -> str | None:
    return name and os.path.expanduser(name)


def _located(name: str | None) -> str | None:
    name = _home(name)
    if name is None:
        return None
    found = (base / name for base in (FilePath.cwd(), REPOSITORY) if (base / name).exists())
    return next((str(path.resolve()) for path in found), name)
