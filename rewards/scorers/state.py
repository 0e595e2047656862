"""Tool-success reward: whether the environment ended in the state that the task asked for.

States are plain JSON values. Objects compare by key, lists by position; 1 and 1.0 are equal, 1 and true are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.contracts import Ending, Reward


class StateReward(Reward):
    """The part `state`: 1.0 if the model gave an answer and the final state is `payload.goal`, else 0.0."""

    parts = ("state",)

    async def score(self, ending: Ending) -> dict[str, float]:
        return {"state": state_reward(ending.state, ending.payload["goal"]) if ending.answer is not None else 0.0}


def state_reward(state: Any, goal: Any) -> float:
    """1.0 if the final state is exactly the goal state, else 0.0."""
    return float(_same(state, goal))


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)
