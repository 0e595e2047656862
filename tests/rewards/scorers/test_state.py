from __future__ import annotations

import pytest

from rewards.scorers.state import state_reward


@pytest.mark.parametrize(
    ("state", "goal", "expected"),
    [
        ({}, {}, 1.0),
        ({"a": 1}, {"a": 1}, 1.0),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, 1.0),
        ({"a": [1, {"x": None}]}, {"a": (1, {"x": None})}, 1.0),
        ({"a": 1}, {"a": 1.0}, 1.0),
        ({"a": 1}, {"a": True}, 0.0),
        ({"a": 1}, {"a": "1"}, 0.0),
        ({"a": 1, "b": 2}, {"a": 1}, 0.0),
        ({"a": 1}, {"a": 1, "b": 2}, 0.0),
        ({"a": [1, 2]}, {"a": [2, 1]}, 0.0),
        ({"a": [1]}, {"a": [1, 1]}, 0.0),
    ],
)
def test_only_the_exact_goal_counts(state: object, goal: object, expected: float) -> None:
    assert state_reward(state, goal) == state_reward(goal, state) == expected
