"""GRPO: a reward is compared with the other rewards of its own group."""

from __future__ import annotations

from collections.abc import Sequence

from rl.advantages.common import Advantage, Advantages, Baseline, Scored, all_equal
from rl.advantages.config import GrpoSettings


def grpo(groups: Sequence[Sequence[Scored]], settings: GrpoSettings) -> Advantages:
    """Return each reward minus the mean of its own group (Shao et al. 2024, DeepSeekMath, section 4.1.2).

    With normalize_std it is divided by the group's population standard deviation + EPSILON. Without it, very hard and
    very easy tasks, whose rewards hardly differ, are not scaled up (Liu et al. 2025, Dr. GRPO). A group with fewer than
    two members, or whose rewards are all equal, has nothing to compare and gives None.
    """
    return [_of_group([member.reward for member in group], settings.normalize_std) for group in groups]


def _of_group(rewards: Sequence[float], normalize_std: bool) -> list[Advantage] | None:
    if len(rewards) < 2 or all_equal(rewards):
        return None
    baseline = Baseline.of(rewards, normalize_std)
    return [baseline.advantage(reward) for reward in rewards]
