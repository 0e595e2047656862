"""Keys that recipes once had. Each is refused, with a message that says what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.recipe.marked_yaml import KeyPath

MOVED: Mapping[KeyPath, str] = {
    ("algorithm", "name"): "write algorithm: NAME",
    ("algorithm", "clip_low"): "write loss.clip_low",
    ("algorithm", "clip_high"): "write loss.clip_high",
    ("algorithm", "normalize_std"): "write advantage.normalize_std",
    ("rewards", "weights"): "write tasks.sources.N.weights, for each source that has the part",
    ("eval", "success_reward"): "write tasks.sources.N.success.reward, for each source",
    ("tasks", "seed"): "run.seed decides which tasks are trained; the evaluation's tasks do not depend on a seed",
}


def moved(path: KeyPath) -> str | None:
    """The advice for the moved key that `path` names or leads into; None if no key on the path has moved."""
    return next((MOVED[path[:end]] for end in range(1, len(path) + 1) if path[:end] in MOVED), None)


def moved_keys(data: Mapping[str, Any]) -> list[KeyPath]:
    """The keys in a recipe's data that have moved."""
    return [path for path in MOVED if isinstance(section := data.get(str(path[0])), dict) and path[1] in section]
