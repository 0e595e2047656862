"""Load a recipe file, with `a.b=c` overrides, as one validated `Recipe`.

    read → overrides → preset → extensions → validate → paths → chat format → checks

The first stage that finds problems reports all it found. Each names the file and line (or the override) it comes from,
the value, and the nearest key or the fix. Called by the verbs (rl.verbs.usage). It imports no torch, so that a typing
mistake is answered at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rewards.errors import one_line
from rewards.strict import StrictModel
from rl.config import Recipe
from rl.families.registry import known_family
from rl.paths import REPOSITORY
from rl.recipe import marked_yaml
from rl.recipe.check_model import model_problems
from rl.recipe.check_sources import source_problems
from rl.recipe.checks import cross_field_problems
from rl.recipe.extensions import chosen_settings, locate_files
from rl.recipe.marked_yaml import KeyPath
from rl.recipe.moved import MOVED, moved_keys
from rl.recipe.overrides import apply, expand_shorthands
from rl.recipe.presets import fill_from_preset
from rl.recipe.sections import dotted, is_choice, model_at, parts, section_of, unknown_key
from rollout.chat.config import RendererSettings
from rollout.tasks.config import DatasetConfig
from rollout.tasks.rows import local_files

_CHARACTERS = 700
"""The most characters of a message, which may quote what somebody wrote."""


_QUOTED = 200
"""The most characters of a value that a message quotes."""


class RecipeError(ValueError):
    """The recipe cannot be used. `messages` holds one line for each problem."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = tuple(one_line(message, _CHARACTERS) for message in messages)
        super().__init__("\n".join(self.messages))


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, checks: bool = True) -> Recipe:
    """Read `path`, apply `key=value` overrides in order, validate. Without `checks` nothing is asked of the machine:
    the model and the datasets need not be there.

    An override's value is YAML. A bare string for a section with a short form (`model=PATH`) sets that one field and
    keeps the rest; one that chooses an extension (`loss=NAME`) replaces the section. A relative model or dataset path
    is looked up from the working directory, then from the repository; if it is found, it becomes absolute. A user's
    `file.py:attribute` is looked up from the recipe's directory, then from the working directory. A path may begin with
    `~`.

    Raises:
        RecipeError: names every problem of the first stage that found one.
    """
    marked = _read(path)
    origins = {where: f"{path}:{line}" for where, line in marked.lines.items()}
    data: dict[str, Any] = expand_shorthands(marked.data)
    mistakes = [f"{_origin(where, origins)}: {dotted(where)} is gone; {MOVED[where]}" for where in moved_keys(data)]
    mistakes += [message for override in overrides for message in apply(override, data, origins)]
    if mistakes:
        raise RecipeError(mistakes)
    try:
        algorithm = data.get("algorithm", Recipe.model_fields["algorithm"].default)
        if isinstance(algorithm, str):
            fill_from_preset(data, algorithm)
    except ValueError as error:
        raise RecipeError([f"{_origin(('algorithm',), origins)}: {error}"]) from None
    for section in _choices(data):
        locate_files(section, (Path(path).absolute().parent, Path.cwd()))
    return _validate(data, origins, checks)


def _read(path: str | Path) -> marked_yaml.Marked:
    try:
        marked = marked_yaml.parse(Path(path).read_text(encoding="utf-8"))
    except marked_yaml.YamlError as error:
        raise RecipeError([f"{path}:{error.line}: {error}"]) from None
    except UnicodeDecodeError as error:
        raise RecipeError([f"{path}: not UTF-8 text: {error.reason} at byte {error.start}"]) from None
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read: {error.strerror}"]) from None
    if not isinstance(marked.data, dict):
        raise RecipeError([f"{path}:1: a recipe is a mapping of sections (model:, tasks:, trainer: …)"])
    return marked


def _choices(value: Any, model: type[StrictModel] | None = Recipe) -> Iterator[dict[str, Any]]:
    """Every section of the data that chooses an extension."""
    if isinstance(value, list):
        for entry in value:
            yield from _choices(entry, model)
    elif isinstance(value, dict) and model is not None:
        if is_choice(model):
            yield value
        for key in value.keys() & model.model_fields.keys():
            yield from _choices(value[key], section_of(model.model_fields[key].annotation))


def _validate(data: dict[str, Any], origins: Mapping[KeyPath, str], checks: bool) -> Recipe:
    try:
        # JSON mode is strict about types and still reads a list as a tuple.
        recipe = Recipe.model_validate_json(json.dumps(data), strict=True, context=chosen_settings)
    except ValidationError as error:
        details = error.errors()
        # A tuple with one bad entry is also reported as too short; the entry's own message is the useful one.
        deeper = {d["loc"][:end] for d in details for end in range(len(d["loc"]))}
        told = [_describe(d, data, origins) for d in details if not (d["type"] == "too_short" and d["loc"] in deeper)]
        raise RecipeError(list(dict.fromkeys(told))) from None
    if not checks:
        return recipe
    recipe = _with_family_format(_resolve_paths(recipe))
    problems = [*cross_field_problems(recipe), *model_problems(recipe), *source_problems(recipe)]
    found = [f"{_origin(parts(problem.key), origins)}: {problem.text}" for problem in problems]
    if found:
        raise RecipeError(found)
    return recipe


def _describe(detail: ErrorDetails, data: Any, origins: Mapping[KeyPath, str]) -> str:
    path: KeyPath = detail["loc"]
    origin = _origin(path, origins)
    if detail["type"] == "extra_forbidden":
        return f"{origin}: {unknown_key(path[:-1], str(path[-1]), data)}"
    if detail["type"] == "missing" and isinstance(path[-1], int):
        return f"{origin}: {dotted(path[:-1])} has too few entries"
    if detail["type"] == "missing":
        return f"{origin}: {dotted(path[:-1]) or 'the recipe'} needs the key {str(path[-1])!r}"
    if detail["type"] == "value_error":
        return f"{origin}: {dotted(path)}: {detail['ctx']['error']}"
    section = model_at(path, data)
    expected = detail["msg"].replace("Input should be ", "expected ", 1)
    if section is not None and detail["type"] == "model_type":
        expected = f"expected a mapping with the keys {', '.join(section.model_fields)}"
    quote = detail["type"] == "string_type" and isinstance(detail["input"], bool | int | float)
    hint = " (put it in quotes)" if quote else ""
    return f"{origin}: {dotted(path)}: {expected}, got {_quoted(detail['input'])}{hint}"


def _quoted(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def _origin(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    """The place where a value was written, or else where the closest enclosing section was."""
    return next(origins[path[:end]] for end in range(len(path), -1, -1) if path[:end] in origins)


def _resolve_paths(recipe: Recipe) -> Recipe:
    """Make model and dataset paths absolute, so that no process depends on its working directory. Expands `~`."""
    places = {"dir": _home(recipe.run.dir), "cache_dir": _home(recipe.run.cache_dir)}
    sources = tuple(
        s.model_copy(update={"dataset": _found(s.dataset), "eval_dataset": _found(s.eval_dataset)})
        for s in recipe.tasks.sources
    )
    sft = recipe.sft and recipe.sft.model_copy(
        update={
            "dataset": _found(recipe.sft.dataset),
            "mixture": tuple(m.model_copy(update={"dataset": _found(m.dataset)}) for m in recipe.sft.mixture),
        }
    )
    return recipe.model_copy(
        update={
            "run": recipe.run.model_copy(update=places),
            "model": recipe.model.model_copy(update={"path": _located(recipe.model.path)}),
            "tasks": recipe.tasks.model_copy(update={"sources": sources}),
            "sft": sft,
        }
    )


def _with_family_format(recipe: Recipe) -> Recipe:
    """Write the chat format of the model's family into the recipe, where the recipe names none."""
    model = recipe.model
    if model.renderer is not None:
        return recipe
    try:
        family = known_family(model.path, model.family)
    except ValueError:  # the checks report that there is no family
        return recipe
    if family is None or family.renderer is None:
        return recipe
    settings = chosen_settings(RendererSettings.kind, family.renderer)(name=family.renderer)
    return recipe.model_copy(update={"model": model.model_copy(update={"renderer": settings})})


def _home(name: str | None) -> str | None:
    return name and os.path.expanduser(name)


def _found(dataset: DatasetConfig | None) -> DatasetConfig | None:
    return dataset and dataset.model_copy(update={"path": _located(dataset.path)})


def _located(name: str | None) -> str | None:
    name = _home(name)
    if name is None:
        return None
    found = (str(base / name) for base in (Path.cwd(), REPOSITORY))
    return next((os.path.realpath(path) for path in found if os.path.exists(path) or local_files(path)), name)
