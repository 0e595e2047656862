"""Tool-success reward: did the environment end in the state that the task asked for?

Plain JSON values in, a number out. Objects compare by key, lists by position; 1 and 1.0 are equal, 1 and true are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def state_reward(state: Any, goal: Any) -> float:
    """1.0 if the final state is exactly the goal state, else 0.0."""
    return float(_same(state, goal))


def state_fraction(state: Mapping[str, Any], goal: Mapping[str, Any]) -> float:
    """The share, 0 to 1, of top-level keys of either side that have the goal's value; 1.0 where both are empty.

    Informational: it can be farmed by doing nothing where the start is near the goal, so give it the weight 0 (or a
    small one) when reporting it as a reward part.
    """
    keys = state.keys() | goal.keys()
    return sum(k in state and k in goal and _same(state[k], goal[k]) for k in keys) / len(keys) if keys else 1.0


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)
