"""REINFORCE: a reward is compared with all rewards of the step."""

from __future__ import annotations

from collections.abc import Sequence

from rl.advantages.common import Advantages, Baseline, Scored, all_equal
from rl.advantages.config import ReinforceSettings


def reinforce(groups: Sequence[Sequence[Scored]], settings: ReinforceSettings) -> Advantages:
    """Return each reward minus the mean over the whole step (Williams 1992, with a batch-mean baseline). Groups may
    have any size.

    With normalize_std it is divided by the step's population standard deviation + EPSILON (as in REINFORCE++,
    Hu 2025). If all rewards of the step are equal, every group gives None.
    """
    everything = [member.reward for group in groups for member in group]
    if not everything or all_equal(everything):
        return [None for _ in groups]
    baseline = Baseline.of(everything, settings.normalize_std)
    return [[baseline.advantage(member.reward) for member in group] if group else None for group in groups]
