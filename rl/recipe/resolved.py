"""Write a `Recipe` as the config.yaml of its run, with the batch arithmetic that follows from it."""

from __future__ import annotations

from pathlib import Path

from rl.config import Recipe
from rl.recipe import marked_yaml
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
        "inference_devices": inference.replicas * inference.tensor_parallel,
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
