"""An entry of a recipe's `tasks.sources.N.rewards`."""

from __future__ import annotations

from typing import ClassVar

from rewards.strict import Named


class RewardSettings(Named):
    """The base of every reward's settings. The name `environment` means the rewards of the environment itself."""

    kind: ClassVar[str] = "reward"
