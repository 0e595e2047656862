"""Advantage estimator: a reward is compared with the mean of the other rewards of its group ("leave one out").

An estimator is a function from the trajectories of a step, group by group, to their advantages. It sees rewards and
turns, never a token (rl/advantages/common.py), and infrastructure failures are gone before it is called. A number is
the advantage of every token of a trajectory; PerTurn and PerToken give finer ones. The driver calls it once a step and
waits, so its cost must grow linearly with the number of trajectories.
"""

from collections.abc import Sequence

from pydantic import Field

from rl.advantages.common import Advantage, Advantages, Scored, all_equal
from rl.advantages.config import AdvantageSettings


class Settings(AdvantageSettings):
    limit: float = Field(default=5.0, gt=0)
    """The largest absolute advantage. One lucky trajectory cannot dominate a step."""


def example(groups: Sequence[Sequence[Scored]], settings: Settings) -> Advantages:
    """Return one list for each group, with one advantage for each trajectory; None leaves a group out of the loss.

    With rewards r of n trajectories it is r_i - (sum of r - r_i) / (n - 1) (Kool et al. 2019; Ahmadian et al. 2024).
    """
    return [_of_group([member.reward for member in group], settings.limit) for group in groups]


example.Settings = Settings


def _of_group(rewards: Sequence[float], limit: float) -> list[Advantage] | None:
    if len(rewards) < 2 or all_equal(rewards):  # there is nothing to compare
        return None
    total, others = sum(rewards), len(rewards) - 1
    return [max(-limit, min(limit, reward - (total - reward) / others)) for reward in rewards]
