"""The tree of a recipe's sections: the model that a dotted path names, and errors for a path that names none.

The keys of a section that chooses an extension depend on that choice, so these functions also take the recipe's data.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from rewards.strict import Named, StrictModel
from rl.config import Recipe
from rl.recipe.extensions import chosen_settings
from rl.recipe.marked_yaml import KeyPath


def section_of(annotation: Any) -> type[StrictModel] | None:
    """The section's model in `Section`, `Section | None`, `tuple[Section, ...]` or an Annotated of these, else None."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part)) is not None), None)


def model_at(path: KeyPath, data: Any) -> type[StrictModel] | None:
    """The model of the section that `path` names; None for a plain value, free-form content or an unknown path."""
    model: type[StrictModel] | None = Recipe
    for end, part in enumerate(path, start=1):
        if isinstance(part, str):
            if model is None or part not in model.model_fields:
                return None
            model = section_of(model.model_fields[part].annotation)
        if model is not None and issubclass(model, Named):
            model = _as_chosen(model, _value_at(path[:end], data))
    return model


def is_choice(model: type[StrictModel] | None) -> bool:
    """Whether a section chooses an extension by name."""
    return model is not None and issubclass(model, Named)


def problem_with(path: KeyPath, data: Any) -> str | None:
    """A message that says what is wrong with a dotted path, None if nothing is. Keys of an extension are not judged,
    because a later override may choose another extension."""
    model: type[StrictModel] | None = Recipe
    for depth, part in enumerate(path):
        if model is None or isinstance(part, int):
            continue
        if is_choice(model):
            return None
        if part not in model.model_fields:
            return unknown_key(path[:depth], part, data)
        annotation = model.model_fields[part].annotation
        model = section_of(annotation)
        if model is None and depth + 1 < len(path) and not _is_container(annotation):
            return f"{dotted(path[: depth + 1])} is a single value and has no key {path[depth + 1]!r}"
    return None


def unknown_key(parent: KeyPath, key: str, data: Any) -> str:
    """An error message with the nearest keys: the same word below this section, else anywhere, else a similar one."""
    keys = list((model_at(parent, data) or Recipe).model_fields)
    nearest = _named(key, parent)
    if not nearest and not parent and not difflib.get_close_matches(key, keys):
        words = {name.rpartition(".")[2] for name in leaf_names(Recipe)}
        nearest = [name for word in difflib.get_close_matches(key, words, n=1) for name in _named(word, parent)]
    nearest = nearest or [dotted((*parent, *difflib.get_close_matches(key, keys, n=1, cutoff=0.0)))]
    which = f"the nearest is {nearest[0]!r}" if len(nearest) == 1 else f"there are {', '.join(map(repr, nearest))}"
    return f"unknown key {dotted((*parent, key))!r}; {which}"


def _named(word: str, parent: KeyPath) -> list[str]:
    """The keys that are called `word`: those below `parent` if there are any, else all."""
    everywhere = [name for name in leaf_names(Recipe) if name.rpartition(".")[2] == word]
    return [name for name in everywhere if parent and name.startswith(f"{dotted(parent)}.")] or everywhere


def leaf_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys that hold a value, not a section; N stands for a position in a list."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield prefix + name
        else:
            entry = ".N" if get_origin(field.annotation) is tuple else ""
            yield from leaf_names(section, f"{prefix}{name}{entry}.")


def dotted(path: KeyPath) -> str:
    """`("run", "steps")` as `run.steps`."""
    return ".".join(str(part) for part in path)


def parts(name: str) -> KeyPath:
    """`run.steps` as `("run", "steps")`; a part of digits counts list entries from 0."""
    return tuple(
        int(part) if part.isascii() and part.isdigit() and len(part) < 10 else part for part in name.split(".")
    )


def _as_chosen(model: type[Named], section: Any) -> type[StrictModel]:
    if not isinstance(section, dict):
        return model
    try:
        return chosen_settings(model.kind, section.get("name"))
    except ValueError:
        return model


def _value_at(path: KeyPath, data: Any) -> Any:
    for part in path:
        if isinstance(part, int):
            data = data[part] if isinstance(data, list) and part < len(data) else None
        else:
            data = data.get(part) if isinstance(data, dict) else None
    return data


def _is_container(annotation: Any) -> bool:
    return get_origin(annotation) in (dict, tuple)
