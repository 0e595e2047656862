"""GRPO: a reward is compared with the other rewards of its own group."""

from __future__ import annotations

from rl.advantages.common import Advantages, Rewards, all_equal, centred


def grpo(rewards: Rewards, normalize_std: bool) -> Advantages:
    """Reward minus the mean of its own group (Shao et al. 2024, DeepSeekMath, section 4.1.2).

    With normalize_std it is divided by the group's population standard deviation + EPSILON; without, hard and easy
    tasks weigh as their rewards do (Liu et al. 2025, Dr. GRPO). A group with fewer than two members, or whose rewards
    are all equal, has nothing to compare and gives None.
    """
    return [
        centred(group, group, normalize_std) if len(group) >= 2 and not all_equal(group) else None for group in rewards
    ]
