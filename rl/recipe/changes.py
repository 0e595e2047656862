"""What differs between the recipe of a resumed run and the one that it had before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config import Recipe
from rl.recipe import marked_yaml
from rl.recipe.marked_yaml import KeyPath
from rl.recipe.sections import dotted, model_at

MEANING: tuple[KeyPath, ...] = (
    ("model",),
    *(("lora", key) for key in ("rank", "alpha", "dropout", "targets", "rslora", "dora")),
    ("tasks", "sources"),
    ("tasks", "train_size"),
    ("run", "seed"),
    ("rollout", "sampling"),
    ("rollout", "thinking"),
    ("advantage",),
    ("loss",),
    ("correction",),
    ("kl",),
    ("aggregation",),
)
"""The keys that decide what saved weights, groups, tasks and positions mean: they may not change within a run."""
_QUOTED = 120


@dataclass(frozen=True, slots=True)
class Change:
    """A key with its values before and now, as JSON text."""

    key: KeyPath
    before: str
    now: str

    @property
    def changes_meaning(self) -> bool:
        """Whether it is below one of these keys, or is a section that has one of them and was set or left out."""
        return any(self.key[: len(path)] == path or path[: len(self.key)] == self.key for path in MEANING)

    def __str__(self) -> str:
        return f"{dotted(self.key)} was {self.before} and is {self.now}"


class ChangedRecipe(ValueError):
    """A resumed run has a recipe under which what it has saved would mean something else."""


def changes_since(config: Path, recipe: Recipe) -> list[Change]:
    """The keys of a recipe that differ from those in the config.yaml of a run. `resume` is left out. A config that
    cannot be read has no changes; one of another version may lack keys, which are left out, too."""
    try:
        before = marked_yaml.parse(config.read_text(encoding="utf-8")).data
    except (OSError, ValueError):
        return []
    now = json.loads(recipe.model_dump_json())
    return [change for change in _differences(before, now, (), now) if change.key[:1] != ("resume",)]


def check_resumable(config: Path, recipe: Recipe) -> list[Change]:
    """Return the changes that a resumed run may have.

    Raises:
        ChangedRecipe: others are among them; the message names each with both values.
    """
    changes = changes_since(config, recipe)
    if refused := [change for change in changes if change.changes_meaning]:
        raise ChangedRecipe(
            f"a resumed run keeps its model, tasks, sampling and algorithm: {'; '.join(map(str, refused))}. Resume "
            f"with the former values, name another run.dir, or, if the new ones mean the same, write them into {config}"
        )
    return changes


def _differences(before: Any, now: Any, path: KeyPath, recipe: Any) -> Iterator[Change]:
    section = not path or model_at(path, recipe) is not None
    if section and isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in now:
            if key in before:
                yield from _differences(before[key], now[key], (*path, key), recipe)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, (*path, number), recipe)
    elif before != now:
        yield Change(path, _quoted(before), _quoted(now))


def _quoted(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"
