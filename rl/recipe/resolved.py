"""Write a `Recipe` as the config.yaml of its run, with the batch arithmetic that follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rl.config import Recipe
from rl.recipe import marked_yaml
from rl.recipe.presets import PRESETS
from rollout.types import TOKEN_BYTES

OTHER_OBJECTS_BYTES = 96 * 2**20
"""For packed demonstrations, and Ray's own minimum."""


def save_resolved(recipe: Recipe, path: str | Path) -> None:
    """Write `resolved_text`; loading the file gives an equal Recipe."""
    Path(path).write_text(resolved_text(recipe), encoding="utf-8")


def resolved_text(recipe: Recipe) -> str:
    """The recipe as YAML with every key, defaults included, below a comment with its batch arithmetic."""
    arithmetic = "".join(f"#   {name}: {value}\n" for name, value in derived(recipe).items())
    return (
        "# The resolved recipe of this run: every key, defaults included. It can be run again as it is.\n"
        f"# What follows from it:\n{arithmetic}{marked_yaml.dump(recipe.model_dump(mode='json'))}"
    )


def derived(recipe: Recipe) -> dict[str, int]:
    """The batch arithmetic. It follows from the recipe, so there are no keys for it."""
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
        "inference_devices": sum(inference.widths),
        "object_store_mb": round(object_store_bytes(recipe) / 1e6),
    }


def object_store_bytes(recipe: Recipe) -> int:
    """The size of the object store of a local Ray instance: room for the samples of all groups that the gate admits, at
    full length, half as much again for what lies between them, and for everything else that goes through it.

    A chat format that forks makes more of them. What does not fit goes to disk, by Ray or by our own store.
    """
    groups = recipe.trainer.groups_per_step * (1 + recipe.buffer.max_staleness)
    tokens = groups * recipe.rollout.group_size * recipe.rollout.max_context
    return OTHER_OBJECTS_BYTES + tokens * TOKEN_BYTES * 3 // 2


def own_settings(recipe: Recipe) -> dict[str, str]:
    """By section what the recipe sets to something else than the default, as `key: value, …`; a key of the recipe
    itself is a section of its own."""
    preset = PRESETS[recipe.algorithm]
    changed = {name: value for name, value in _changed(recipe).items() if value != preset.get(name, {}).get("name")}
    return {name: _inner(value) or "all defaults" for name, value in changed.items()}


def _changed(section: BaseModel, among: BaseModel | None = None) -> dict[str, Any]:
    """The fields of a section whose values are not those of `among`, or else not the defaults of its class."""
    found = {}
    for name, field in type(section).model_fields.items():
        value, default = getattr(section, name), field.get_default(call_default_factory=True)
        if type(among) is type(section):
            default = getattr(among, name)
        if value != default:
            found[name] = _shown(value, default)
    return found


def _shown(value: Any, default: Any) -> Any:
    """A value as plain data, less what is default in it. A choice without settings of its own is its name."""
    if isinstance(value, tuple | list):
        return [_shown(item, None) for item in value]
    if not isinstance(value, BaseModel):
        return value
    changed = _changed(value, default)
    only = next(iter(changed), "")
    return changed[only] if len(changed) == 1 and only == getattr(type(value), "shorthand", None) else changed


def _inner(value: Any) -> str:
    """Plain data in one line, without the braces around all of it."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_outer(item)}" for key, item in value.items())
    return _outer(value)


def _outer(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{_inner(value)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_outer, value))}]"
    return str(value) if isinstance(value, str) else json.dumps(value)
