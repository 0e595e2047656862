"""The control of a learning curve: GRPO on rewards that were dealt out anew among a step's trajectories."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from rl.advantages.common import Advantages, Scored
from rl.advantages.config import GrpoSettings
from rl.advantages.grpo import grpo


class Settings(GrpoSettings):
    seed: int = 0


_dealt = 0
"""The steps so far. Each deals in another order."""


def shuffled(groups: Sequence[Sequence[Scored]], settings: Settings) -> Advantages:
    """Shuffle the rewards of all trajectories, and go on as `grpo`: what is learned has nothing to do with the task."""
    global _dealt
    _dealt += 1
    rewards = [member.reward for group in groups for member in group]
    random.Random(f"{settings.seed}/{_dealt}").shuffle(rewards)
    dealt = iter(rewards)
    return grpo([[replace(member, reward=next(dealt)) for member in group] for group in groups], settings)


shuffled.Settings = Settings  # type: ignore[attr-defined]
