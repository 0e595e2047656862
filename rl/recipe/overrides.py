"""Expand short forms and apply `a.b=c` overrides in a recipe's data, before it is validated."""

from __future__ import annotations

from typing import Any

from rewards.strict import StrictModel
from rl.config import Recipe
from rl.recipe import marked_yaml
from rl.recipe.marked_yaml import KeyPath
from rl.recipe.moved import moved
from rl.recipe.sections import dotted, is_choice, model_at, parts, problem_with, section_of

SHOWN = 150
"""The most characters of an override that a message repeats."""


def expand_shorthands(value: Any, model: type[StrictModel] | None = Recipe) -> Any:
    """Copy a section's data. Every bare string in the place of a section is expanded to that section."""
    if model is None:
        return value
    if isinstance(value, list):
        return [expand_shorthands(entry, model) for entry in value]
    if isinstance(value, str) and model.shorthand is not None:
        return {model.shorthand: value}
    if not isinstance(value, dict):
        return value
    fields = model.model_fields
    return {
        key: expand_shorthands(entry, section_of(fields[key].annotation) if key in fields else None)
        for key, entry in value.items()
    }


def apply(override: str, data: dict[str, Any], origins: dict[KeyPath, str]) -> list[str]:
    """Write one override into `data` and `origins`. Returns messages that say what is wrong with it."""
    label = f"override {override if len(override) <= SHOWN else override[:SHOWN] + '…'}"
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        return [f"{label}: write it as key=value, for example run.steps=10"]
    try:
        value = _value(text)
    except marked_yaml.YamlError as error:
        return [f"{label}: {error}; a text with signs that YAML knows goes into quotes: {name}='\"…\"'"]
    if name.strip().startswith("-"):
        return [f"{label}: write it without dashes: {name.strip().lstrip('-')}={text}"]
    path = parts(name.strip())
    if instead := moved(path):
        return [f"{label}: {dotted(path)} is gone; {instead}"]
    if message := problem_with(path, data):
        return [f"{label}: {message}"]
    path, value = _shortened(path, value, data)
    message = _write(path, value, data, origins, label)
    return [] if message is None else [f"{label}: {message}"]


def _value(text: str) -> Any:
    """The value of an override. A plain text keeps its `#`, which begins a comment in a file only."""
    plain_text = text.strip()
    if "#" in plain_text and plain_text[0] not in "[{\"'|>":
        return plain_text
    return marked_yaml.parse(text).data


def _shortened(path: KeyPath, value: Any, data: dict[str, Any]) -> tuple[KeyPath, Any]:
    """The path and value to write for an override. A bare string for a section goes to the section's short field and
    keeps the rest. A bare string that chooses an extension replaces the section, because settings differ."""
    model = model_at(path, data)
    if model is None or model.shorthand is None or not isinstance(value, str):
        return path, expand_shorthands(value, model)
    if is_choice(model):
        return path, {model.shorthand: value}
    return (*path, model.shorthand), value


def _write(path: KeyPath, value: Any, data: dict[str, Any], origins: dict[KeyPath, str], label: str) -> str | None:
    target: Any = data
    for depth, part in enumerate(path[:-1]):
        if isinstance(target, dict) and target.get(part) is None:
            # The first override in a section that the recipe leaves out, or sets to null, creates the section.
            target[part] = {}
            origins[path[: depth + 1]] = label
        target = _child(target, part)
        if not isinstance(target, dict | list):
            return f"{dotted(path[: depth + 1])} is not there to be changed"
    if isinstance(target, list) and not (isinstance(path[-1], int) and path[-1] < len(target)):
        return f"{dotted(path[:-1])} has {len(target)} entries, counted from 0"
    target[path[-1]] = value
    for where in [where for where in origins if where[: len(path)] == path]:
        del origins[where]
    origins[path] = label
    return None


def _child(parent: Any, part: str | int) -> Any:
    if isinstance(parent, list) and not (isinstance(part, int) and part < len(parent)):
        return None
    return parent[part]
