"""REINFORCE: a reward is compared with all rewards of the step."""

from __future__ import annotations

from rl.advantages.common import Advantages, Rewards, all_equal, centred


def reinforce(rewards: Rewards, normalize_std: bool) -> Advantages:
    """Reward minus the mean over the whole step (Williams 1992, with a batch-mean baseline), for any group size.

    With normalize_std it is divided by the step's population standard deviation + EPSILON (as in REINFORCE++,
    Hu 2025). Where all rewards of the step are equal, every group gives None.
    """
    everything = [reward for group in rewards for reward in group]
    if not everything or all_equal(everything):
        return [None for _ in rewards]
    return [centred(group, everything, normalize_std) if group else None for group in rewards]
