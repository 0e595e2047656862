"""The estimator in example.py, loaded as a run loads it: `./launch.sh test` with the path of this file."""

from pathlib import Path

import pytest

from rewards.extension import load
from rl.advantages.common import Scored
from rl.advantages.registry import ADVANTAGES

NAME = f"{Path(__file__).with_name('example.py')}:example"
example = load(ADVANTAGES, NAME)


@pytest.mark.parametrize(
    ("rewards", "advantages"),
    [
        ([1.0, 0.0, 0.0], [1.0, -0.5, -0.5]),
        ([3.0, 1.0], [2.0, -2.0]),
        ([9.0, 0.0], [4.0, -4.0]),  # the limit
        ([1.0, 1.0], None),
        ([1.0], None),
    ],
)
def test_advantages_by_hand(rewards: list[float], advantages: list[float] | None) -> None:
    group = [Scored(reward=reward) for reward in rewards]
    assert example([group], example.Settings(name=NAME, limit=4.0)) == [advantages]


def test_groups_do_not_see_each_other() -> None:
    groups = [[Scored(reward=1.0), Scored(reward=0.0)], [Scored(reward=7.0), Scored(reward=7.0)]]
    assert example(groups, example.Settings(name=NAME)) == [[1.0, -1.0], None]
