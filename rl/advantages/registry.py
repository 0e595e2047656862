"""Algorithms: from the rewards of a step's groups to one advantage per trajectory.

An algorithm is a function of rewards alone, one list a group, and an entry in `ALGORITHMS`; `rl.config.AlgorithmConfig`
names it. Infrastructure failures are gone before it is asked: they are neither trained nor part of any baseline
(invariant 7). Every sampled token of a trajectory, in all its samples, gets the trajectory's advantage.
"""

from __future__ import annotations

from collections.abc import Callable

from rl.advantages.common import Advantages, Rewards
from rl.advantages.grpo import grpo
from rl.advantages.reinforce import reinforce

ALGORITHMS: dict[str, Callable[[Rewards, bool], Advantages]] = {"grpo": grpo, "reinforce": reinforce}
